"""The needle: a key and a seven-digit value, hidden in one sentence."""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from needles.words import ADJECTIVES, NOUNS

FIRST_VALUE = 1_000_000
LAST_VALUE = 9_999_999

DISTRACTOR_DIVISOR = 7
"""Values that it divides belong to distractors. Sevens leave no trace in the digits of the others."""


class Needle(NamedTuple):
    """A key, `adjective-noun`, and the value, seven digits, that the model must find for it."""

    key: str
    value: str

    def sentence(self) -> str:
        """Return the sentence that hides the value in the haystack.

        Source: LongRoPE2, arXiv:2502.20082, appendix C; the wording is RULER's, arXiv:2404.06654.
        """
        return f"One of the special magic numbers for {self.key} is: {self.value}."


def draw_needles(rng: np.random.Generator, num: int, *, taken: Collection[Needle] = ()) -> list[Needle]:
    """Return needles that share neither key nor value with each other or with those already taken.

    Args:
        rng: Where keys and values come from.
        num: Needles wanted.
        taken: Needles drawn before, for example those of the search when held-out ones are drawn.

    Returns:
        `num` needles. Neither their keys nor their values are ever those of a generated distractor.

    Raises:
        ValueError: fewer than `num` keys are left.
    """
    taken_keys = {needle.key for needle in taken}
    keys = [key for key in _all_keys() if key not in taken_keys]
    if num > len(keys):
        raise ValueError(
            f"the needles of a run must be at most {len(_all_keys())}, got {num} after {len(taken_keys)} taken ones. "
            "Ask for fewer documents, or for fewer needles in each."
        )
    chosen = rng.permutation(len(keys))[:num]
    values = _draw_values(rng, num, taken={needle.value for needle in taken})
    return [Needle(keys[index], value) for index, value in zip(chosen, values, strict=True)]


def _all_keys() -> list[str]:
    return [f"{adjective}-{noun}" for adjective in ADJECTIVES for noun in NOUNS]


def _draw_values(rng: np.random.Generator, num: int, *, taken: Collection[str]) -> list[str]:
    values: dict[str, None] = {}  # a set that keeps the order of drawing
    while len(values) < num:
        number = int(rng.integers(FIRST_VALUE, LAST_VALUE, endpoint=True))
        if number % DISTRACTOR_DIVISOR and str(number) not in taken:
            values[str(number)] = None
    return list(values)
