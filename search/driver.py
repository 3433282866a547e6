"""The loop that keeps a scorer busy: (candidate, documents) tasks out, measurements back in completion order."""

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from results.measurement import Measurement, candidate_key
from rope.factors import RescaleFactors
from search.panels import Batches
from workers.scorer import Scorer, Task

Pair = tuple[str, str]
"""Key of a candidate and id of a document."""


class Work(NamedTuple):
    """A candidate and what it is to be measured on."""

    factors: RescaleFactors
    """The candidate."""
    blocks: Sequence[Batches]
    """Ids of the documents of each forward, in blocks; between two of them it may be dropped."""
    with_gradient: bool = False
    """Whether the loss's gradient is wanted too."""

    @property
    def documents(self) -> list[str]:
        """Ids of all its documents, in order."""
        return [document for block in self.blocks for batch in block for document in batch]


GoesOn: TypeAlias = Callable[[Work, Sequence[Measurement]], bool]
"""Told a candidate and all that it has after a block, whether its next block is worth measuring."""


def measure(
    scorer: Scorer,
    works: Iterable[Work],
    *,
    known: Mapping[Pair, Measurement],
    record: Callable[[Sequence[Measurement]], None],
    goes_on: GoesOn = lambda work, found: True,
) -> Iterator[tuple[Work, list[Measurement]]]:
    """Yield each candidate with its measurements as soon as its last document is in, or as soon as it is dropped.

    At most `scorer.capacity` tasks are in flight. A failed document fails its candidate, never the loop. The next
    candidate is taken only when there is room for its first task, so that whoever makes candidates one by one knows
    all that is finished by then. A document that is at work for the same candidate is waited for, not measured twice;
    no other candidate is taken while one has nothing else to do.

    Args:
        scorer: Where tasks are measured.
        works: Candidates; a lazy iterable is taken from as workers become free.
        known: Measurements that need not be made again; looked up when a candidate is taken.
        record: Called with the measurements of each task when they arrive, before anything else is done with them.
        goes_on: Asked between two blocks, unless all that is left is known.

    Yields:
        Candidates in the order in which they are complete, the measurements in the order of the documents; those of
        a dropped candidate end with the block after which it was dropped.
    """
    open_works: dict[str, list[_Progress]] = defaultdict(list)
    waiting: deque[Task] = deque()
    at_work: set[Pair] = set()
    source = iter(works)
    num_in_flight = 0
    idle: _Progress | None = None
    while True:
        while num_in_flight < scorer.capacity:
            if not waiting:
                work = None if idle else next(source, None)
                if work is None:
                    break
                progress = _Progress(work, known, goes_on, at_work)
                waiting.extend(progress.next_tasks())
                if progress.is_complete:
                    yield work, progress.measurements()
                    continue
                open_works[candidate_key(work.factors)].append(progress)
                if not waiting:
                    idle = progress
                    break
            scorer.submit(waiting.popleft())
            num_in_flight += 1
        if num_in_flight == 0:
            return
        measurements = scorer.collect()
        num_in_flight -= 1
        record(measurements)
        key = measurements[0].candidate  # a task is one candidate's, which may be at work on two panels
        at_work.difference_update((key, measurement.document) for measurement in measurements)
        for progress in list(open_works[key]):
            progress.add(measurements)
            tasks = progress.next_tasks()
            waiting.extendleft(reversed(tasks))  # what was begun first is finished first
            if progress is idle and (tasks or progress.is_complete):
                idle = None
            if progress.is_complete:
                open_works[key].remove(progress)
                yield progress.work, progress.measurements()


class _Progress:
    """A candidate on its way through the blocks."""

    def __init__(self, work: Work, known: Mapping[Pair, Measurement], goes_on: GoesOn, at_work: set[Pair]) -> None:
        self.work = work
        self._goes_on = goes_on
        self._at_work = at_work
        self._documents = frozenset(work.documents)
        self._key = key = candidate_key(work.factors)
        found = {document: known[key, document] for document in work.documents if (key, document) in known}
        self._found = {
            document: measurement
            for document, measurement in found.items()
            if not work.with_gradient or measurement.gradient is not None or measurement.failure is not None
        }
        self._num_blocks = 0
        self._is_dropped = False

    @property
    def is_complete(self) -> bool:
        return self._is_dropped or len(self._found) == len(self.work.documents)

    def next_tasks(self) -> list[Task]:
        """The tasks of the next block, none before the last one is measured; without what is known or at work."""
        tasks: list[Task] = []
        while not tasks and not self.is_complete and self._begun_is_measured():
            if self._num_blocks and not self._goes_on(self.work, self.measurements()):
                self._is_dropped = True
                break
            block = self.work.blocks[self._num_blocks]
            self._num_blocks += 1
            left = (tuple(document for document in batch if self._is_left(document)) for batch in block)
            tasks = [Task(self.work.factors, batch, self.work.with_gradient) for batch in left if batch]
        self._at_work.update((self._key, document) for task in tasks for document in task.documents)
        return tasks

    def add(self, measurements: Sequence[Measurement]) -> None:
        found = {measurement.document: measurement for measurement in measurements}
        self._found.update((document, found[document]) for document in self._documents & found.keys())

    def measurements(self) -> list[Measurement]:
        begun = self.work.documents if self.is_complete and not self._is_dropped else self._begun()
        return [self._found[document] for document in begun]

    def _is_left(self, document: str) -> bool:
        return document not in self._found and (self._key, document) not in self._at_work

    def _begun(self) -> list[str]:
        return [document for block in self.work.blocks[: self._num_blocks] for batch in block for document in batch]

    def _begun_is_measured(self) -> bool:
        return all(document in self._found for document in self._begun())
