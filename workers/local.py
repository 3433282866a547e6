"""LocalScorer: tasks measured in this process, one after the other."""

import logging
from collections import deque
from collections.abc import Sequence

from needles.document import NeedleDocument
from results.measurement import Measurement
from workers.accelerators import accelerators_in_use
from workers.scorer import (
    ClusterError,
    Scoring,
    Task,
    WorkerSpeed,
    failed_measurements,
    failure_reason,
    given_up,
    measure_task,
    speed_of,
)

MOST_GIVEN_UP = 3
"""Tasks in a row that may not all raise: after a broken device (a sticky CUDA error) none would be measured."""

logger = logging.getLogger(__name__)


class LocalScorer:
    """The Scorer without Ray. A task is measured when it is collected."""

    def __init__(self, scoring: Scoring, documents: Sequence[NeedleDocument], *, max_retries: int = 1) -> None:
        """Take the model and documents to measure with.

        Args:
            scoring: Stays its owner's; closing the scorer leaves it alone.
            documents: What the scoring was made with, for failures.
            max_retries: How often a task is tried again that raised.
        """
        self._scoring = scoring
        self._documents = {document.id: document for document in documents}
        self._max_retries = max_retries
        self._num_retries = 0
        self._num_given_up = 0
        self._tasks: deque[Task] = deque()

    @property
    def capacity(self) -> int:
        """One task: there is one process."""
        return 1

    @property
    def num_workers(self) -> int:
        """One: this process."""
        return 1

    @property
    def num_retries(self) -> int:
        """Tasks that were tried again so far."""
        return self._num_retries

    @property
    def accelerators(self) -> tuple[str, ...]:
        """Name of each accelerator that this process uses."""
        return tuple(accelerator.name for accelerator in accelerators_in_use())

    @property
    def speeds(self) -> tuple[WorkerSpeed, ...]:
        """What this process's device can do, if the scoring says it."""
        speed = speed_of(self._scoring)
        return () if speed is None else (speed,)

    def submit(self, task: Task) -> None:
        """Take a task; returns at once.

        Args:
            task: What to measure.
        """
        self._tasks.append(task)

    def collect(self) -> list[Measurement]:
        """Measure the task that was submitted first.

        Returns:
            One measurement or failure per document of the task; empty if there is no task.

        Raises:
            ClusterError: This task and those before raised at every try.
        """
        if not self._tasks:
            return []
        task = self._tasks.popleft()
        for num_tries in range(1, self._max_retries + 2):
            try:
                measurements = measure_task(self._scoring, task)
            except Exception as error:  # noqa: BLE001 - the one place that catches all, to turn it into values
                reason = failure_reason(error)
            else:
                self._num_given_up = 0
                return measurements
            if num_tries <= self._max_retries:
                self._num_retries += 1
                logger.warning("a task is tried again: %s", reason)
        self._num_given_up += 1
        if self._num_given_up >= MOST_GIVEN_UP:
            raise ClusterError(
                f"the model must be able to score here, got {self._num_given_up} tasks in a row that raised, the last: "
                f"{reason}. Start again with --resume once the device works."
            )
        return failed_measurements(task, self._documents, given_up(num_tries, reason))

    def close(self) -> None:
        """Forget the tasks that were not collected."""
        self._tasks.clear()
