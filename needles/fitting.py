"""Cuts a haystack, by its characters, so that the whole document has an exact number of tokens."""

from collections.abc import Callable
from math import ceil
from typing import NamedTuple

_CHARACTERS_PER_TOKEN = 4.0  # a first guess
_OVERSHOOT = 1.1  # a draft that is too long is needed to close in
_MAX_ATTEMPTS = 32
_MAX_STEPS_BACK = 16
_ENDINGS = ("", ".", " .", ". .", " . .", ". . .", " . . .")


class Draft(NamedTuple):
    """A document with a haystack of so many characters."""

    num_characters: int
    """Characters of the passage that went in."""

    depths: tuple[float, ...]
    """Share of them before each needle, 0..1."""

    token_ids: list[int]
    """The whole document."""


class NoRoom(ValueError):  # noqa: N818
    """The prompt has too many tokens even without a haystack."""


def fit_haystack(write: Callable[[int, str], Draft], length: int, *, num_characters: int, passage: str) -> Draft:
    """Return a draft of exactly `length` tokens.

    Tokenizers merge across borders, so a haystack's tokens cannot be counted alone: every attempt is the whole
    document. Attempts close in on the cut between one that is too short and one that is too long. Where one character
    more is several tokens more, a few full stops end the haystack.

    For what is no passage's characters see `needles.ruler_tasks.sizing`.

    Args:
        write: From a number of the passage's characters, and an ending, to the document that they make.
        length: Tokens wanted.
        num_characters: Characters that the passage has.
        passage: What errors call it.

    Raises:
        NoRoom: the document is too long without any haystack.
        ValueError: it is too short with all of it, or no cut fits.
    """
    short, long = write(0, ""), None
    if len(short.token_ids) > length:
        raise NoRoom(
            f"length must be at least {len(short.token_ids)} tokens for the prompt, its needles and their answers, "
            f"got {length}. Ask for longer documents, or for fewer needles in each."
        )
    for _ in range(_MAX_ATTEMPTS):
        if len(short.token_ids) == length:
            return short
        if short.num_characters == num_characters:
            raise ValueError(
                f"the haystack must fill a document of {length} tokens, got {len(short.token_ids)} with all "
                f"{num_characters} characters of {passage}. Give a longer corpus, or a shorter target length."
            )
        if long and long.num_characters == short.num_characters + 1:
            break
        draft = write(_next_cut(short, long, length, num_characters), "")
        if len(draft.token_ids) > length:
            long = draft
        else:
            short = draft
    return _fit_with_ending(write, length, short.num_characters, passage)


def _next_cut(short: Draft, long: Draft | None, length: int, num_characters: int) -> int:
    missing = length - len(short.token_ids)
    if long is None:
        rate = max(_CHARACTERS_PER_TOKEN, short.num_characters / max(len(short.token_ids), 1))
        return min(short.num_characters + ceil(_OVERSHOOT * rate * missing), num_characters)
    gap = long.num_characters - short.num_characters
    step = round(gap * missing / (len(long.token_ids) - len(short.token_ids)))
    return short.num_characters + min(max(step, 1), gap - 1)


def _fit_with_ending(write: Callable[[int, str], Draft], length: int, cut: int, passage: str) -> Draft:
    for num_characters in range(cut, max(cut - _MAX_STEPS_BACK, -1), -1):
        for ending in _ENDINGS:
            draft = write(num_characters, ending)
            if len(draft.token_ids) == length:
                return draft
    raise ValueError(
        f"some cut of {passage} must give exactly {length} tokens, got only more or fewer. "
        "Ask for one token more or less, or give another corpus."
    )
