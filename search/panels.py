"""Panels: which documents the candidates of a generation are measured on, and in which order."""

from collections.abc import Sequence
from dataclasses import dataclass

from needles.document import NeedleDocument
from workers.scorer import WorkerSpeed

Batches = Sequence[tuple[str, ...]]
"""Ids of the documents of each forward."""


@dataclass(frozen=True, kw_only=True)
class Panels:
    """Documents by generation: a window that moves over all of them, and begins anew at their end.

    All candidates of a generation are measured on the same documents, so that their comparison is paired. With fresh
    documents no two generations have all of theirs in common, so that no candidate can fit them.
    """

    documents: tuple[str, ...]
    """Ids of all documents, in an order of which every part holds needles from everywhere; see `by_depth`."""
    size: int
    """Documents of a candidate."""
    num_fresh: int = 0
    """Documents that each generation has new."""
    batch_size: int = 1
    """Documents in one forward."""
    always: tuple[str, ...] = ()
    """Documents of another length that every candidate is measured on too."""

    def of(self, generation: int) -> tuple[str, ...]:
        """Return the ids of a generation's documents."""
        start = generation * self.num_fresh
        window = tuple(self.documents[place % len(self.documents)] for place in range(start, start + self.size))
        return window + self.always

    def blocks(self, documents: Sequence[str], looks: Sequence[int], *, with_gradient: bool = False) -> list[Batches]:
        """Return documents as blocks of batches, so that candidates can be looked at between two blocks.

        Args:
            documents: Ids.
            looks: Documents after which there is a look, ascending; what comes after the last is its block.
            with_gradient: Whether gradients are wanted: those are computed document by document, so that a batch
                would only keep other workers from a part of it.
        """
        starts = [0, *looks[:-1]]
        ends = [*looks[:-1], len(documents)]
        size = 1 if with_gradient else self.batch_size
        return [self._batches(documents[start:end], size) for start, end in zip(starts, ends, strict=True)]

    def _batches(self, documents: Sequence[str], size: int) -> Batches:
        lengths = [
            [document for document in documents if (document in self.always) is other] for other in (False, True)
        ]
        return [batch for same_length in lengths for batch in batches_of(same_length, size)]


def batches_of(documents: Sequence[str], batch_size: int) -> list[tuple[str, ...]]:
    """Return the ids of documents of one length, in batches for one forward each."""
    return [tuple(documents[start : start + batch_size]) for start in range(0, len(documents), batch_size)]


def common_batch_size(speeds: Sequence[WorkerSpeed], length: int) -> int:
    """Return how many documents of a length a forward should have: no more than is fastest for any of these workers.

    Args:
        speeds: What the workers that are ready found out; later ones get batches of that size too.
        length: Tokens of a document.
    """
    return min((speed.batch_sizes.get(length, 1) for speed in speeds), default=1)


def by_depth(documents: Sequence[NeedleDocument]) -> tuple[str, ...]:
    """Return the ids of documents in an order in which the first few, and any few in a row, cover all depths.

    Args:
        documents: Documents of any depths.

    Returns:
        Ids by the van der Corput sequence over the depths' ranks: the middle of what is left open, again and again.
    """
    ranked = sorted(documents, key=lambda document: (document.depth, document.id))
    places = sorted(range(len(ranked)), key=_bits_reversed)
    return tuple(ranked[place].id for place in places)


def _bits_reversed(number: int) -> float:
    reversed_bits, weight = 0.0, 0.5
    while number:
        number, bit = divmod(number, 2)
        reversed_bits += bit * weight
        weight /= 2
    return reversed_bits
