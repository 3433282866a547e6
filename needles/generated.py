"""Haystacks that are generated: repeated noise, and sentences that look like needles. Both are endless."""

from collections.abc import Iterator
from itertools import count, repeat

import numpy as np

from needles.needle import DISTRACTOR_DIVISOR, FIRST_VALUE, LAST_VALUE, Needle
from needles.words import ADJECTIVES, DISTRACTOR_NOUNS

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."

SENTENCES_PER_RECORD = 20
_SEED = 2404_06654
_GROUP_MODULUS = 11  # not a divisor of 10, so that groups leave no trace in the digits


def noise_records() -> Iterator[str]:
    """Return RULER's noise without end: the same five sentences, a line each time.

    Source: RULER, arXiv:2404.06654, task niah_single_1.
    """
    return repeat("\n".join([NOISE] * SENTENCES_PER_RECORD))


def distractor_records(num_groups: int) -> Iterator[str]:
    """Yield sentences that look like needles with other keys and values, without end.

    Record k draws its nouns and values from group k modulo `num_groups`, so records of different groups share
    neither key nor value. Inside a group a key may come again with another value.

    Args:
        num_groups: Groups that must have nothing in common; at most 11.

    Source: RULER, arXiv:2404.06654, task niah_multikey_2.
    """
    for number in count():
        rng = np.random.default_rng((_SEED, number))
        group = number % num_groups
        yield " ".join(_distractor(rng, group, num_groups).sentence() for _ in range(SENTENCES_PER_RECORD))


def _distractor(rng: np.random.Generator, group: int, num_groups: int) -> Needle:
    adjective = ADJECTIVES[rng.integers(len(ADJECTIVES))]
    nouns = DISTRACTOR_NOUNS[group::num_groups]
    return Needle(f"{adjective}-{nouns[rng.integers(len(nouns))]}", str(_distractor_value(rng, group)))


def _distractor_value(rng: np.random.Generator, group: int) -> int:
    step = DISTRACTOR_DIVISOR * _GROUP_MODULUS
    first = (FIRST_VALUE // step + 1) * step + DISTRACTOR_DIVISOR * group
    return first + step * int(rng.integers((LAST_VALUE - first) // step + 1))
