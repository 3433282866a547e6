"""A stretch of a corpus, and where in the corpus it lies."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from itertools import accumulate
from typing import NamedTuple


class Piece(NamedTuple):
    """A stretch of one record."""

    record: str
    """The record's id."""

    start: int
    """Where in the record it begins, characters."""

    text: str

    @property
    def end(self) -> int:
        """Where in the record it ends, characters."""
        return self.start + len(self.text)


@dataclass(frozen=True)
class Passage:
    """A stretch of a corpus that may run over several records."""

    pieces: tuple[Piece, ...]

    @cached_property
    def text(self) -> str:
        """The text of all pieces."""
        return "".join(piece.text for piece in self.pieces)

    @property
    def id(self) -> str:
        """The first and the last record, each with the range of characters taken from it."""
        if not self.pieces:
            return "an empty passage"
        first, last = (f"{piece.record}[{piece.start}:{piece.end}]" for piece in (self.pieces[0], self.pieces[-1]))
        return first if len(self.pieces) == 1 else f"{first}..{last}"

    @property
    def sha256(self) -> str:
        """The hash of the text in UTF-8, hexadecimal."""
        return sha256(self.text.encode()).hexdigest()

    def cut(self, start: int, end: int) -> Passage:
        """Return the passage whose text is `text[start:end]`, with 0 <= start <= end."""
        pieces = []
        for index in range(bisect_right(self._ends, start), len(self.pieces)):
            piece = self.pieces[index]
            offset = self._ends[index] - len(piece.text)
            if max(start, offset) >= end:
                break
            skipped = max(0, start - offset)
            pieces.append(Piece(piece.record, piece.start + skipped, piece.text[skipped : end - offset]))
        return Passage(tuple(pieces))

    def __add__(self, other: Passage) -> Passage:
        """Return this passage with the other one after it."""
        return Passage(self.pieces + other.pieces)

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(len(piece.text) for piece in self.pieces))
