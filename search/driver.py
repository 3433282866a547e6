"""The loop that keeps a scorer busy: (candidate, documents) tasks out, measurements back in completion order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from results.measurement import Measurement, candidate_key
from rope.factors import RescaleFactors
from workers.scorer import Scorer, Task

Batches = Sequence[tuple[str, ...]]
"""Ids of the documents of each forward."""
Pair = tuple[str, str]
"""Key of a candidate and id of a document."""


def measure(
    scorer: Scorer,
    candidates: Iterable[RescaleFactors],
    batches: Batches,
    *,
    known: Mapping[Pair, Measurement],
    record: Callable[[Sequence[Measurement]], None],
) -> Iterator[tuple[RescaleFactors, list[Measurement]]]:
    """Yield each candidate with its measurements as soon as its last document is in.

    At most `scorer.capacity` tasks are in flight. A failed document fails its candidate, never the loop. The next
    candidate is taken only when there is room for its first task, so that whoever makes candidates one by one knows
    all that is finished by then.

    Args:
        scorer: Where tasks are measured.
        candidates: Distinct factors (by `candidate_key`); a lazy iterable is taken from as workers become free.
        batches: Ids of the documents of each forward; every candidate is measured on all of them.
        known: Measurements that need not be made again.
        record: Called with the measurements of each task when they arrive, before anything else is done with them.

    Yields:
        Candidates in the order in which they are complete, the measurements in the order of the batches.
    """
    documents = [document for batch in batches for document in batch]
    open_candidates: dict[str, _Progress] = {}
    waiting: deque[Task] = deque()
    source = iter(candidates)
    num_in_flight = 0
    while True:
        while num_in_flight < scorer.capacity:
            if not waiting:
                factors = next(source, None)
                if factors is None:
                    break
                progress = _Progress(factors, documents, known)
                if progress.is_complete:
                    yield factors, progress.measurements()
                    continue
                open_candidates[candidate_key(factors)] = progress
                waiting.extend(progress.tasks(batches))
            scorer.submit(waiting.popleft())
            num_in_flight += 1
        if num_in_flight == 0:
            return
        measurements = scorer.collect()
        num_in_flight -= 1
        record(measurements)
        key = measurements[0].candidate  # a task is one candidate's
        open_candidates[key].add(measurements)
        if open_candidates[key].is_complete:
            complete = open_candidates.pop(key)
            yield complete.factors, complete.measurements()


class _Progress:
    """A candidate on its way through the documents."""

    def __init__(self, factors: RescaleFactors, documents: Sequence[str], known: Mapping[Pair, Measurement]) -> None:
        self.factors = factors
        self._documents = documents
        key = candidate_key(factors)
        self._found = {document: known[key, document] for document in documents if (key, document) in known}

    @property
    def is_complete(self) -> bool:
        return len(self._found) == len(self._documents)

    def tasks(self, batches: Batches) -> Iterator[Task]:
        """The batches, without the documents that are known."""
        left = (tuple(document for document in batch if document not in self._found) for batch in batches)
        return (Task(self.factors, batch) for batch in left if batch)

    def add(self, measurements: Sequence[Measurement]) -> None:
        self._found.update((measurement.document, measurement) for measurement in measurements)

    def measurements(self) -> list[Measurement]:
        return [self._found[document] for document in self._documents]
