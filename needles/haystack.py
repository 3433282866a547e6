"""Stretches of a corpus for the prompts of a task, and a sentence hidden in one."""

from pathlib import Path

import numpy as np

from needles.breaks import nearest_break
from needles.corpus import Split, read_split
from needles.passage import Passage

_CHARACTERS_PER_TOKEN = 32  # more than any stretch needs
_MAX_CHARACTERS = 64_000_000  # read for one call, however many passages it makes


def draw_passages(
    source: str | Path,
    *,
    split: Split,
    num_passages: int,
    num_tokens: int,
    rng: np.random.Generator,
    column: str = "text",
) -> list[Passage]:
    """Return stretches of a corpus that begin at places spread evenly over a split, in random order.

    The split's text continues at its own start when it ends; one stretch never repeats itself. Stretches overlap
    where the split is shorter than all of them together.

    Args:
        source: The corpus; see `corpus.read_texts`.
        split: The part of the corpus to use.
        num_passages: How many; at least 1.
        num_tokens: Tokens that each is to fill; it has many more where the split has.
        rng: Draws the places.
        column: Field or column of the corpus that holds the text.

    Raises:
        ValueError: the corpus cannot be read, or nothing of it falls to the split.
    """
    most = _CHARACTERS_PER_TOKEN * num_tokens
    wanted = max(most, min(num_passages * most, _MAX_CHARACTERS))
    text = read_split(source, split, num_characters=wanted, column=column)
    places = rng.permutation((np.arange(num_passages) + rng.random(num_passages)) / num_passages)
    return [_passage_from(text, float(place), most) for place in places]


def hide(haystack: str, sentence: str, depth: float) -> str:
    """Return a haystack with a sentence in it, at the end of a sentence or a line nearest to a depth.

    Args:
        haystack: Any text.
        sentence: What to hide.
        depth: Share of the haystack that comes before it, 0..1.
    """
    position = nearest_break(haystack, round(depth * len(haystack)))
    before, after = haystack[:position], haystack[position:]
    left = "" if not before or before[-1].isspace() else " "
    right = "" if not after or after[0].isspace() else " "
    return f"{before}{left}{sentence}{right}{after}"


def _passage_from(text: Passage, place: float, num_characters: int) -> Passage:
    start = nearest_break(text.text, round(place * len(text.text)))
    tail = text.cut(start, start + num_characters)
    return tail + text.cut(0, min(start, num_characters - len(tail.text)))
