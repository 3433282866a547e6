"""In which order kinds of packs come, and the documents of one kind: both without memory of what came before."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_TOLERANCE = 1e-9  # of sums of shares, which are rounded


def spread(shares: Sequence[float], count: int) -> npt.NDArray[np.int16]:
    """Return which of several kinds comes at each of `count` places, each kind as evenly as can be.

    After any number of places n, every kind has come n * share times, give or take less than one.

    Args:
        shares: Of the kinds, at least one, each above 0; they sum to 1.
        count: Places.

    Returns:
        Indices of kinds, shape (count,).

    Source: Tijdeman, The chairman assignment problem, Discrete Mathematics 32 (1980).
    """
    rates = np.asarray(shares, dtype=np.float64)
    slack = 1 / (2 * max(len(rates) - 1, 1))
    chosen = np.empty(count, dtype=np.int16)
    given = np.zeros(len(rates))
    for place in range(count):
        due = rates * (place + 1) - given
        until_late = np.where(due >= slack - _TOLERANCE, (1 - slack - due) / rates, np.inf)
        chosen[place] = np.argmin(until_late)
        given[chosen[place]] += 1
    return chosen


def ordinals(kinds: npt.NDArray[np.int16]) -> npt.NDArray[np.int64]:
    """Return how many earlier places have the same kind as each place; both of shape (count,)."""
    result = np.empty(len(kinds), dtype=np.int64)
    for kind in np.unique(kinds):
        places = np.flatnonzero(kinds == kind)
        result[places] = np.arange(len(places))
    return result


class Piece(NamedTuple):
    """A document's beginning in a pack."""

    document: int
    num_tokens: int


class DocumentOrder:
    """Documents in random order, all of them before any comes again, dealt out to packs of one length.

    The last document of a pack is cut to the room that is left, and the next pack begins with the next document:
    the rest of a document that is cut is never read.
    """

    def __init__(
        self,
        documents: npt.NDArray[np.int64],
        lengths: npt.NDArray[np.int64],
        *,
        pack_length: int,
        seed: Sequence[int],
    ) -> None:
        """Take what is dealt out.

        Args:
            documents: Indices, shape (num_documents,), at least one.
            lengths: Tokens of each with its special tokens, at least 1, shape (num_documents,).
            pack_length: Tokens of a pack.
            seed: Decides the order, with the number of the epoch.
        """
        self._documents = documents
        self._lengths = np.minimum(lengths, pack_length)
        self._pack_length = pack_length
        self._seed = tuple(seed)
        self._starts = [0]
        self._recent = (-1, np.empty(0, dtype=np.int64))

    @property
    def num_documents(self) -> int:
        """Documents of an epoch."""
        return len(self._documents)

    def num_packs_of_an_epoch(self) -> int:
        """Return how many whole packs come before a document comes a second time."""
        while self._starts[-1] < self.num_documents:
            self.prepare(2 * len(self._starts))
        return bisect_right(self._starts, self.num_documents) - 1

    def num_documents_of(self, num_packs: int) -> int:
        """Return how many documents, repeats counted, the first packs take; below what was prepared."""
        return self._starts[num_packs]

    def prepare(self, num_packs: int) -> None:
        """Find where the first packs begin; `pieces` can then tell them in any order.

        Args:
            num_packs: Packs that may be asked for.
        """
        place, target = self._starts[-1], self._pack_length
        while len(self._starts) <= num_packs:
            epoch, first = divmod(place, self.num_documents)
            sums = np.cumsum(self._lengths[self._order(epoch)[first:]])
            while len(self._starts) <= num_packs and (last := int(np.searchsorted(sums, target))) < len(sums):
                self._starts.append(place + last + 1)
                target = int(sums[last]) + self._pack_length
            place += len(sums)
            target -= int(sums[-1])

    def pieces(self, ordinal: int) -> list[Piece]:
        """Return what a pack consists of; its tokens add up to the pack's length.

        Args:
            ordinal: Of the pack, from 0; below what was prepared.
        """
        pieces, room = [], self._pack_length
        for place in range(self._starts[ordinal], self._starts[ordinal + 1]):
            epoch, index = divmod(place, self.num_documents)
            chosen = self._order(epoch)[index]
            num_tokens = min(int(self._lengths[chosen]), room)
            pieces.append(Piece(int(self._documents[chosen]), num_tokens))
            room -= num_tokens
        return pieces

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        if self._recent[0] != epoch:
            rng = np.random.default_rng((*self._seed, epoch))
            self._recent = (epoch, rng.permutation(self.num_documents))
        return self._recent[1]
