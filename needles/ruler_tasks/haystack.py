"""What needles are hidden in: the noise sentence, the corpus, or lines that look like needles."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from needles.breaks import nearest_break
from needles.corpus import Split, read_split
from needles.generated import NOISE

_CHARACTERS_PER_TOKEN = 32
_MIN_CHARACTERS = 8_000_000
_SPACE = re.compile(r"\s+")

DEPTHS = tuple(round(100 * step / 39) / 100 for step in range(40))
"""Where in an essay a needle may lie: 40 shares of its sentences from 0 to 1, as in RULER."""


class Essays(NamedTuple):
    """The text of a corpus, every white space a single blank."""

    text: str

    name: str
    """What errors call it."""

    @classmethod
    def read(cls, source: str | Path, *, split: Split, length: int, column: str) -> Essays:
        """Return the beginning of a split, enough for haystacks of `length` tokens at any place.

        Raises:
            ValueError: see `corpus.read_split`.
        """
        num_characters = max(length * _CHARACTERS_PER_TOKEN, _MIN_CHARACTERS)
        passage = read_split(source, split, num_characters=num_characters, column=column)
        return cls(_SPACE.sub(" ", passage.text).strip(), f"the {split} part of {source}")

    def from_place(self, place: float, *, num_characters: int) -> str:
        """Return what follows a place, 0..1, going on from the start at the end; no character comes twice."""
        start = nearest_break(self.text, round(place * len(self.text)))
        tail = self.text[start : start + num_characters]
        head = self.text[: min(start, num_characters - len(tail))]
        return f"{tail.rstrip()} {head}" if tail and head else tail + head


def noise_lines(num_characters: int) -> str:
    """Return RULER's five sentences, a line each time."""
    return "\n".join([NOISE] * (num_characters // (len(NOISE) + 1) + 1))


def hide_in_essay(essay: str, sentences: Sequence[str], depths: Sequence[float]) -> tuple[str, list[float]]:
    """Return the text with each sentence at the end of a sentence nearest to its depth, and the depths as they are.

    Args:
        essay: The haystack.
        sentences: What to hide.
        depths: Share of the haystack before each, 0..1.
    """
    positions = [nearest_break(essay, round(depth * len(essay))) for depth in depths]
    text = essay
    # The last one goes in first, so that the places of those before it stay where they are
    for position, sentence in sorted(zip(positions, sentences, strict=True), reverse=True):
        parts = (text[:position].rstrip(), sentence, text[position:].lstrip())
        text = " ".join(part for part in parts if part)
    return text, [position / max(len(essay), 1) for position in positions]


def hide_between_lines(text: str, lines: Sequence[str], rng: np.random.Generator) -> tuple[str, list[float]]:
    """Return the text with the lines in it, in their order, each before another line of the text, and their depths.

    Args:
        text: The haystack; it must have at least as many lines as there are to hide.
        lines: What to hide.
        rng: Draws the places, uniformly.
    """
    haystack = text.split("\n")
    places = sorted(rng.choice(len(haystack), size=len(lines), replace=False).tolist())
    starts = np.cumsum([0, *(len(line) + 1 for line in haystack)])
    for place, line in zip(reversed(places), reversed(lines), strict=True):
        haystack.insert(place, line)
    return "\n".join(haystack), [float(starts[place]) / max(len(text), 1) for place in places]
