"""Passkey retrieval: a number among sentences that say nothing, and the window inside which a model finds it."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from needles.fitting import Draft, NoRoom, fit_haystack
from needles.frame import Frame, build_frame
from needles.generated import NOISE
from needles.sample import Sample, check_count, check_depth
from needles.tokenizer import Tokenizer, decode

TASK = "passkey"
WINDOW_TASK = "passkey_window"
"""The passkeys at a prompt's beginning, at many lengths, from which the effective window is found."""
FIRST_KEY, LAST_KEY = 10_000, 99_999
"""Five digits, as in Position Interpolation."""
NUM_GENERATED = 24
"""Tokens that may be generated: five digits, should each be four, and a few more."""
MIN_SUCCESS = 0.2
"""Share of the passkeys at a length that must be found."""
NUM_WINDOW_LENGTHS = 32
"""Lengths at which Position Interpolation's window is looked for."""

_TASK_TEXT = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    "I will quiz you about the important information there.\n"
)
_SENTENCE = "The pass key is {key}. Remember it. {key} is the pass key."
_QUESTION = "\nWhat is the pass key?"
_ANSWER_START = " The pass key is"
_CHARACTERS_PER_TOKEN = 32  # more than any tokenizer needs for English


class WindowSamples(NamedTuple):
    """Passkeys at the beginning of prompts of many lengths."""

    samples: list[Sample]
    """Of the task `passkey_window`, shortest first."""

    left_out: list[int]
    """Lengths that are too short for the prompt, tokens."""


def build_passkey_samples(
    tokenizer: Tokenizer,
    *,
    num_samples: int,
    length: int,
    rng: np.random.Generator,
    depth: float | None = None,
    is_chat: bool = False,
    num_generated: int = NUM_GENERATED,
    task: str = TASK,
) -> list[Sample]:
    """Return prompts with a passkey each, in the wording of Position Interpolation's paper.

    Filler goes round the passkey's line, and begins anew behind it, as in the program of Landmark Attention.

    Args:
        tokenizer: The model's.
        num_samples: How many; at least 1.
        length: Tokens of prompt and generated text together.
        rng: Draws passkeys and depths; the same state gives the same samples.
        depth: Share of the filler before the passkey, 0..1; random, spread evenly over the samples, if None. Filler
            is cut behind a sentence there, so that a sample's depth may differ by half a sentence.
        is_chat: Whether to ask in the model's chat template.
        num_generated: Tokens that may be generated for each.
        task: What the samples belong to.

    Returns:
        Samples with distinct keys and their depths as they came out.

    Raises:
        ValueError: `num_samples` is below 1 or above 90,000, `num_generated` is below 1, the depth is outside 0..1,
            `length` is too short for the prompt (`fitting.NoRoom`), the tokenizer has no chat template or cannot encode
            a passkey.

    Source: Position Interpolation, arXiv:2306.15595, section 3.3 and figure 3; Landmark Attention, arXiv:2305.16300,
        epfml/landmark-attention, llama/run_test.py.
    """
    num_keys = LAST_KEY - FIRST_KEY + 1
    check_count("num_samples", num_samples)
    check_count("num_generated", num_generated)
    if num_samples > num_keys:
        raise ValueError(f"num_samples must be at most {num_keys}, the passkeys, got {num_samples}. Ask for fewer.")
    if depth is not None:
        check_depth(depth)
    frame = build_frame(tokenizer, is_chat=is_chat)
    keys = (FIRST_KEY + rng.choice(num_keys, num_samples, replace=False)).tolist()
    spread = rng.permutation((np.arange(num_samples) + rng.random(num_samples)) / num_samples)
    depths = spread.tolist() if depth is None else [depth] * num_samples
    samples = []
    for key, wanted in zip(map(str, keys), depths, strict=True):
        draft = _draft(tokenizer, frame, key, wanted, length - num_generated)
        samples.append(
            Sample(
                task=task,
                id=f"{task}-{length}-{key}" if depth is None else f"{task}-{length}-{depth:g}-{key}",
                token_ids=np.array(draft.token_ids, dtype=np.int32),
                answers=(key,),
                num_generated=num_generated,
                length=length,
                depth=draft.depths[0],
            )
        )
    return samples


def build_window_samples(
    tokenizer: Tokenizer,
    *,
    num_samples: int,
    target_length: int,
    rng: np.random.Generator,
    is_chat: bool = False,
    num_generated: int = NUM_GENERATED,
) -> WindowSamples:
    """Return prompts that begin with a passkey, at each of `window_lengths`; `effective_window` reads their scores.

    Args:
        tokenizer: The model's.
        num_samples: How many at each length; at least 1. Position Interpolation's has 10.
        target_length: Tokens of prompt and generated text together, at the longest length.
        rng: Draws passkeys; the same state gives the same samples.
        is_chat: Whether to ask in the model's chat template.
        num_generated: Tokens that may be generated for each.

    Returns:
        The samples, and which lengths have none.

    Raises:
        ValueError: as `build_passkey_samples` and `window_lengths`; every length is too short for the prompt.

    Source: Position Interpolation, arXiv:2306.15595, section 3.3.
    """
    found = WindowSamples([], [])
    lengths = window_lengths(target_length)
    for length, seed in zip(lengths, rng.integers(2**63, size=len(lengths)).tolist(), strict=True):
        try:
            found.samples.extend(
                build_passkey_samples(
                    tokenizer,
                    num_samples=num_samples,
                    length=length,
                    rng=np.random.default_rng(seed),
                    depth=0.0,
                    is_chat=is_chat,
                    num_generated=num_generated,
                    task=WINDOW_TASK,
                )
            )
        except NoRoom:
            if length == target_length:
                raise
            found.left_out.append(length)
    return found


def window_lengths(target_length: int, *, num: int = NUM_WINDOW_LENGTHS) -> list[int]:
    """Return the lengths at which to look for the effective window: evenly spaced, up to the target length.

    Prompts of these lengths with depth 0 have the passkey at their beginning, so all their filler lies between it and
    the question.

    Args:
        target_length: Tokens that the model is to read.
        num: How many lengths.

    Raises:
        ValueError: `num` is below 1 or above the target length.

    Source: Position Interpolation, arXiv:2306.15595, section 3.3.
    """
    if not 1 <= num <= target_length:
        raise ValueError(f"num must lie between 1 and {target_length}, got {num}. Ask for another number of lengths.")
    return [round(target_length * part / num) for part in range(1, num + 1)]


def effective_window(success: Mapping[int, float], *, min_success: float = MIN_SUCCESS) -> int:
    """Return k_max: the largest length up to which passkeys are found at this length and at every shorter one.

    Args:
        success: Share of the passkeys found, 0..1, by length in tokens; at least one.
        min_success: Share that counts as found.

    Returns:
        One of the lengths; 0 where the shortest fails already.

    Raises:
        ValueError: there is no length, or a share is outside 0..1.

    Source: Position Interpolation, arXiv:2306.15595, section 3.3.

    Example:
        >>> effective_window({1024: 1.0, 2048: 0.2, 3072: 0.1, 4096: 0.9})
        2048
    """
    if not success:
        raise ValueError("the effective window must be looked for at some length, got none. Measure one.")
    window = 0
    for length, share in sorted(success.items()):
        if not 0 <= share <= 1:
            raise ValueError(f"success must lie between 0 and 1, got {share} at {length} tokens. Give a share.")
    for length, share in sorted(success.items()):
        if share < min_success:
            break
        window = length
    return window


def _draft(tokenizer: Tokenizer, frame: Frame, key: str, depth: float, num_tokens: int) -> Draft:
    sentence = _SENTENCE.format(key=key)
    num_characters = _CHARACTERS_PER_TOKEN * max(num_tokens, 1)
    filler = " ".join([NOISE] * (num_characters // len(NOISE) + 1))[:num_characters]

    def write(num_characters: int, ending: str) -> Draft:
        cut = _sentence_end(round(depth * num_characters), num_characters)
        before = f"{filler[:cut].rstrip()}\n".lstrip("\n")
        body = f"{before}{sentence}\n{filler[: num_characters - cut]}{ending}"
        ids = frame.encode(tokenizer, f"{_TASK_TEXT}{body}{_QUESTION}", _ANSWER_START)
        return Draft(num_characters, (cut / max(num_characters, 1),), ids)

    draft = fit_haystack(write, num_tokens, num_characters=num_characters, passage="the filler")
    _check_key(tokenizer, draft.token_ids, key, sentence)
    return draft


def _sentence_end(position: int, num_characters: int) -> int:
    """Return where in the filler a sentence ends, nearest to a position; at 0 nothing comes before it."""
    period = len(NOISE) + 1
    ends = [0, *(index + 2 for index, character in enumerate(NOISE) if character == ".")]
    start = position // period * period
    nearest = min((start + end for end in ends), key=lambda end: abs(end - position))
    return min(nearest, num_characters)


def _check_key(tokenizer: Tokenizer, token_ids: list[int], key: str, sentence: str) -> None:
    if "".join(sentence.split()) not in "".join(decode(tokenizer, token_ids).split()):
        raise ValueError(
            f"the tokenizer must be able to encode the passkey {key}, got a prompt without its sentence back. "
            "Use a model whose tokenizer covers it."
        )
