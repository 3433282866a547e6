"""Needle in a haystack: one needle in a stretch of the corpus, on a grid of depths and lengths."""

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from needles.answer import check_needles
from needles.corpus import Split
from needles.fitting import Draft, fit_haystack
from needles.haystack import draw_passages, hide
from needles.needle import Needle, draw_needles
from needles.passage import Passage
from needles.prompts import RULER_BASE, Prompt
from needles.sample import Sample, check_count, check_depth
from needles.tokenizer import Tokenizer, encode

TASK = "niah_grid"
NUM_GENERATED = 32
"""Tokens that may be generated: the answer's seven digits, should each be four."""


def build_grid(
    tokenizer: Tokenizer,
    source: str | Path,
    *,
    lengths: Sequence[int],
    depths: Sequence[float],
    num_per_cell: int,
    rng: np.random.Generator,
    split: Split = "heldout",
    num_generated: int = NUM_GENERATED,
    prompt: Prompt = RULER_BASE,
    taken: Collection[Needle] = (),
    column: str = "text",
) -> list[Sample]:
    """Return samples of every length, at every depth, several in each cell, each with a needle and a place of its own.

    Args:
        tokenizer: The model's.
        source: The corpus; see `corpus.read_texts`.
        lengths: Tokens of prompt and generated text together; distinct.
        depths: Where needles lie, 0..1, distinct. A needle goes to the nearest end of a sentence or a line, and its
            sample's `depth` is the one asked for, so that cells can be told.
        num_per_cell: Samples in each cell; at least 1.
        rng: Draws needles and places; the same state gives the same samples.
        split: The part of the corpus to use.
        num_generated: Tokens that may be generated for each.
        prompt: What stands round the haystack; the answer begins behind it.
        taken: Needles that these must not share.
        column: Field or column of the corpus that holds the text.

    Returns:
        Samples of the task `niah_grid`, by length, then depth; ids hold both and the number in the cell.

    Raises:
        ValueError: lengths or depths are none, not distinct or out of range, `num_per_cell` or `num_generated` is
            below 1, a length is too short for the prompt, the corpus cannot be read or is too short, too few keys are
            left, or the tokenizer cannot encode a needle.
    """
    _check(lengths, depths, num_per_cell, num_generated)
    num_samples = len(lengths) * len(depths) * num_per_cell
    needles = iter(draw_needles(rng, num_samples, taken=taken))
    samples = []
    for length in lengths:
        num = len(depths) * num_per_cell
        passages = iter(draw_passages(source, split=split, num_passages=num, num_tokens=length, rng=rng, column=column))
        for depth in depths:
            for number in range(num_per_cell):
                needle = next(needles)
                ids = _prompt_ids(tokenizer, next(passages), needle, depth, length - num_generated, prompt)
                samples.append(
                    Sample(
                        task=TASK,
                        id=f"{TASK}-{length}-{depth:g}-{number}",
                        token_ids=np.array(ids, dtype=np.int32),
                        answers=(needle.value,),
                        num_generated=num_generated,
                        length=length,
                        depth=depth,
                    )
                )
    return samples


def _prompt_ids(
    tokenizer: Tokenizer, passage: Passage, needle: Needle, depth: float, num_tokens: int, prompt: Prompt
) -> list[int]:
    """Return the ids of a prompt of so many tokens, which ends where the value would begin."""

    def write(num_characters: int, ending: str) -> Draft:
        haystack = hide(passage.text[:num_characters], needle.sentence(), depth)
        text = prompt.write(haystack + ending, needle).removesuffix(f" {needle.value}")
        return Draft(num_characters, (depth,), encode(tokenizer, text, add_special_tokens=prompt.add_special_tokens))

    ids = fit_haystack(write, num_tokens, num_characters=len(passage.text), passage=passage.id).token_ids
    check_needles(tokenizer, ids, [needle])
    return ids


def _check(lengths: Sequence[int], depths: Sequence[float], num_per_cell: int, num_generated: int) -> None:
    for name, values in (("lengths", lengths), ("depths", depths)):
        if not values or len({f"{value:g}" for value in values}) < len(values):
            raise ValueError(f"a grid must have distinct {name}, got {list(values)}. Give each of them once.")
    for depth in depths:
        check_depth(depth)
    check_count("num_per_cell", num_per_cell)
    check_count("num_generated", num_generated)
