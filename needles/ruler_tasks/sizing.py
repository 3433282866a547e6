"""Finds the size at which a puzzle's prompt has an exact number of tokens.

A size is whatever the puzzle counts: characters, words, lines. `needles.fitting` cuts a passage by its characters, for
the documents of a search too. The two try sizes in different orders; stored documents and samples hold what each found.
"""

from collections.abc import Callable
from functools import partial
from math import ceil
from typing import NamedTuple

_OVERSHOOT = 1.05  # a size that is too long is needed to close in
_MAX_INTERPOLATIONS = 12  # then halving: the gap between two sizes always closes
_MAX_STEPS_BACK = 16


class Sized(NamedTuple):
    """The ids at one size."""

    size: int
    token_ids: list[int]


class TooLong(ValueError):  # noqa: N818
    """Even the smallest size has too many tokens."""

    num_tokens: int

    def __init__(self, num_tokens: int) -> None:
        super().__init__(f"the smallest size has {num_tokens} tokens")
        self.num_tokens = num_tokens


class TooShort(ValueError):  # noqa: N818
    """Even the largest size has too few tokens."""

    num_tokens: int

    def __init__(self, num_tokens: int) -> None:
        super().__init__(f"the largest size has {num_tokens} tokens")
        self.num_tokens = num_tokens


class NoFit(ValueError):  # noqa: N818
    """No size near the border has the exact number."""


def fit_size(
    encode: Callable[[int, str], list[int]], num_tokens: int, *, smallest: int, largest: int, guess: int
) -> tuple[Sized, str]:
    """Return ids of exactly `num_tokens` tokens, with their size and the ending that it needed.

    Every attempt is the whole text, since tokenizers merge across borders. Attempts close in on the step between a
    size with too few tokens and one with too many; where a step is several tokens, full stops fill it up.

    Args:
        encode: From a size, and an ending of a few full stops, to token ids; more size is more tokens, by and large.
        num_tokens: Tokens wanted.
        smallest: The smallest size.
        largest: The largest size.
        guess: The size to try first.

    Raises:
        TooLong: the smallest size has too many tokens.
        TooShort: the largest size has too few.
        NoFit: no size in reach gives the exact number.
    """

    def sized(size: int) -> Sized:
        return Sized(size, encode(size, ""))

    first = sized(smallest)
    if len(first.token_ids) > num_tokens:
        raise TooLong(len(first.token_ids))
    short, long = _bracket(sized, first, num_tokens, largest=largest, guess=guess)
    attempt = 0
    while long and len(short.token_ids) < num_tokens and long.size > short.size + 1:
        middle = sized(_between(short, long, num_tokens, halve=attempt >= _MAX_INTERPOLATIONS))
        short, long = (short, middle) if len(middle.token_ids) > num_tokens else (middle, long)
        attempt += 1
    if len(short.token_ids) == num_tokens:
        return short, ""
    return _with_ending(encode, num_tokens, short, smallest=smallest)


def _bracket(
    sized: Callable[[int], Sized], first: Sized, num_tokens: int, *, largest: int, guess: int
) -> tuple[Sized, Sized | None]:
    """Return the largest size found that is not too long, and one that is, unless the first fits exactly."""
    short = first
    size = min(max(guess, first.size + 1), largest)
    while len(short.token_ids) < num_tokens:
        if short.size >= largest:
            raise TooShort(len(short.token_ids))
        tried = sized(size)
        if len(tried.token_ids) > num_tokens:
            return short, tried
        short = tried
        # A first size that is no better than the smallest says nothing of the rate
        rate = max(short.size - first.size, 1) / max(len(short.token_ids) - len(first.token_ids), 1)
        missing = num_tokens - len(short.token_ids)
        size = min(short.size + max(ceil(_OVERSHOOT * rate * missing), 1), largest)
    return short, None


def _between(short: Sized, long: Sized, num_tokens: int, *, halve: bool) -> int:
    gap = long.size - short.size
    if halve:
        return short.size + gap // 2
    share = (num_tokens - len(short.token_ids)) / (len(long.token_ids) - len(short.token_ids))
    return short.size + min(max(round(gap * share), 1), gap - 1)


def _with_ending(
    encode: Callable[[int, str], list[int]], num_tokens: int, short: Sized, *, smallest: int
) -> tuple[Sized, str]:
    for size in range(short.size, max(short.size - _MAX_STEPS_BACK, smallest) - 1, -1):
        missing = num_tokens - len(encode(size, ""))
        # A stop with its space is one token as a rule, but may be two, and one may merge with what stands before it
        for number in sorted(range(missing + 2), key=partial(_distance, missing)):
            for ending in dict.fromkeys((" ." * number, " ".join("." * number))):
                token_ids = encode(size, ending)
                if len(token_ids) == num_tokens:
                    return Sized(size, token_ids), ending
    raise NoFit(f"no size near {short.size} gives {num_tokens} tokens")


def _distance(one: int, other: int) -> int:
    return abs(one - other)
