"""RULER's frequent words extraction: the three most frequent of coded words whose counts follow a zeta law.

Source: NVIDIA/RULER, scripts/data/synthetic/freq_words_extraction.py and constants.py; arXiv:2404.06654, section 3.
"""

from bisect import bisect_right
from itertools import count
from math import pi
from string import ascii_lowercase

import numpy as np
import numpy.typing as npt

from needles.ruler_tasks.puzzle import Message, Puzzle

_ALPHA = 2.0
_ZETA = pi**2 / 6  # of alpha
_NUM_LETTERS = 6
_TOKENS_PER_WORD_OF_VOCABULARY = 50
_NUM_ANSWERS = 3
_DOTS = "..."  # the most frequent one, which the question says to ignore

_TEMPLATE = (
    "Read the following coded text and track the frequency of each coded word. "
    "Find the three most frequently appeared coded words. {context}\n"
    "Question: Do not provide any explanation. Please ignore the dots '....'. "
    "What are the three most frequently appeared words in the above coded text?"
)
_PREFIX = " Answer: According to the coded text above, the three most frequently appeared words are:"


def frequent_words_puzzle(rng: np.random.Generator, *, length: int) -> Puzzle:
    """Return one sample; its size is the number of words, dots among them.

    For the exact length a few more dots may stand in the text than the law asks for; and a number of words at which
    the third and the fourth word would come equally often is passed over, so that there is one answer.

    Args:
        rng: Draws words and orders.
        length: Tokens of the sample; a vocabulary has a fiftieth of it, and four words at least.
    """
    vocabulary = _vocabulary(rng, max(length // _TOKENS_PER_WORD_OF_VOCABULARY, _NUM_ANSWERS + 1))
    seed = int(rng.integers(2**32))

    def write(size: int, ending: str) -> Message:
        counts = _counts_within(size, len(vocabulary))
        counts[0] += size - counts.sum()
        words = np.repeat(np.array(vocabulary), counts)
        shuffled = np.random.default_rng((seed, size)).permutation(words)
        return Message(_TEMPLATE.format(context=" ".join(shuffled.tolist()) + ending))

    return Puzzle(
        write=write,
        smallest=_fewest_words(len(vocabulary)),
        largest=2 * length,
        answer_prefix=_PREFIX,
        answers=tuple(vocabulary[1 : 1 + _NUM_ANSWERS]),
        evidence=tuple(vocabulary[1 : 1 + _NUM_ANSWERS]),
        material="the coded words",
    )


def word_counts(num_words: int, vocabulary_size: int) -> npt.NDArray[np.int64]:
    """Return how often each word comes when `num_words` are drawn, the dots first; shape (vocabulary_size,).

    The word of rank k comes num_words k^-2 / zeta(2) times, rounded down.
    """
    ranks = np.arange(1, vocabulary_size + 1)
    return (num_words * ranks**-_ALPHA / _ZETA).astype(np.int64)


def _counts_within(num_words: int, vocabulary_size: int) -> npt.NDArray[np.int64]:
    """Return the counts of the largest clear draw that has no more words, after rounding, than these."""

    def total(num_drawn: int) -> int:
        return int(word_counts(num_drawn, vocabulary_size).sum())

    num_drawn = bisect_right(range(2 * (num_words + vocabulary_size)), num_words, key=total) - 1
    while not _is_clear(counts := word_counts(num_drawn, vocabulary_size)):
        num_drawn -= 1
    return counts


def _fewest_words(vocabulary_size: int) -> int:
    return next(
        int(counts.sum()) for num_drawn in count(1) if _is_clear(counts := word_counts(num_drawn, vocabulary_size))
    )


def _is_clear(counts: npt.NDArray[np.int64]) -> bool:
    """Return whether the three words after the dots are more frequent than all others; `counts` never rise."""
    last, following = counts[_NUM_ANSWERS], counts[_NUM_ANSWERS + 1 : _NUM_ANSWERS + 2]
    return bool(last > 0 and np.all(following < last))


def _vocabulary(rng: np.random.Generator, num: int) -> list[str]:
    words = {_DOTS: None}
    while len(words) < num:
        words["".join(rng.choice(list(ascii_lowercase), size=_NUM_LETTERS))] = None
    return list(words)
