"""RULER's common words extraction: ten words that come often in a numbered list, after a solved example.

Source: NVIDIA/RULER, scripts/data/synthetic/common_words_extraction.py and constants.py; arXiv:2404.06654, section 3.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from needles.ruler_tasks.haystack import Essays
from needles.ruler_tasks.puzzle import Message, Puzzle
from needles.words import ADJECTIVES, DISTRACTOR_NOUNS, NOUNS

_NUM_COMMON = 10
_WORD = re.compile(r"\b[^\W\d_]{4,12}\b")
_MAX_CHARACTERS = 8_000_000

_TEMPLATE = (
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n{context}\n"
    "Question: What are the 10 most common words in the above list?"
)
_PREFIX = " Answer: The top 10 words that appear most often in the list are:"


class _Repeats(NamedTuple):
    """How often common words come, and the others."""

    common: int
    uncommon: int


_LONG = 4096
_REPEATS = {True: _Repeats(30, 3), False: _Repeats(6, 1)}
_EXAMPLE_REPEATS = {True: _Repeats(10, 3), False: _Repeats(3, 1)}
_NUM_EXAMPLE_WORDS = {True: 40, False: 20}


class WordPool(NamedTuple):
    """Words to draw from."""

    words: tuple[str, ...]
    """Single words, sorted."""

    pairs: tuple[str, ...]
    """adjective-noun, for lists that need more."""

    @classmethod
    def of(cls, essays: Essays) -> WordPool:
        """Return the corpus's words of 4 to 12 small letters and our own.

        RULER takes its words from the lists of the package wonderwords.
        """
        found = {word for word in _WORD.findall(essays.text[:_MAX_CHARACTERS]) if word.islower()}
        own = (*ADJECTIVES, *NOUNS, *DISTRACTOR_NOUNS)
        pairs = (f"{adjective}-{noun}" for adjective in ADJECTIVES for noun in NOUNS)
        return cls(tuple(sorted({*found, *own})), tuple(pairs))

    def draw(self, rng: np.random.Generator, num: int) -> list[str]:
        """Return different words, `num` of them or all there are; pairs come last, and only when words run out."""
        words = [self.words[index] for index in rng.permutation(len(self.words))[:num]]
        missing = num - len(words)
        return words + [self.pairs[index] for index in rng.permutation(len(self.pairs))[:missing]] if missing else words


def common_words_puzzle(rng: np.random.Generator, *, length: int, pool: WordPool) -> Puzzle:
    """Return one sample; its size is how many times uncommon words come.

    Below 4,096 tokens the words come less often, as in RULER. For the exact length the last uncommon word may come
    once or twice less than the others.

    Args:
        rng: Draws words and orders.
        length: Tokens of the sample.
        pool: Words to draw from.
    """
    is_long = length >= _LONG
    repeats = _REPEATS[is_long]
    example = _example(rng, pool, is_long=is_long)
    # A listed word has two tokens at least, its number and itself
    words = pool.draw(rng, _NUM_COMMON + length // (2 * repeats.uncommon) + 1)
    common, uncommon = words[:_NUM_COMMON], words[_NUM_COMMON:]
    listed = _repeated(common, repeats.common) + _repeated(uncommon, repeats.uncommon)
    num_common = _NUM_COMMON * repeats.common
    order = rng.random(len(listed))

    def write(size: int, ending: str) -> Message:
        shuffled = [listed[index] for index in np.argsort(order[: num_common + size])]
        return Message(f"{example}\n{_TEMPLATE.format(context=_numbered(shuffled) + ending)}")

    return Puzzle(
        write=write,
        smallest=0,
        largest=len(listed) - num_common,
        answer_prefix=_PREFIX,
        answers=tuple(common),
        evidence=tuple(common),
        material="the list of words",
    )


def _example(rng: np.random.Generator, pool: WordPool, *, is_long: bool) -> str:
    words = pool.draw(rng, _NUM_EXAMPLE_WORDS[is_long])
    common, uncommon = words[:_NUM_COMMON], words[_NUM_COMMON:]
    repeats = _EXAMPLE_REPEATS[is_long]
    listed = _repeated(common, repeats.common) + _repeated(uncommon, repeats.uncommon)
    shuffled = [listed[index] for index in rng.permutation(len(listed))]
    return f"{_TEMPLATE.format(context=_numbered(shuffled))}{_PREFIX}{_numbered(common)}"


def _repeated(words: Sequence[str], times: int) -> list[str]:
    return [word for word in words for _ in range(times)]


def _numbered(words: Sequence[str]) -> str:
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, start=1))
