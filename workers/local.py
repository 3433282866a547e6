"""LocalScorer: tasks measured in this process, one after the other."""

from collections import deque

from results.measurement import Measurement
from workers.scorer import Task
from workers.scoring import NeedleScoring


class LocalScorer:
    """The Scorer without Ray. A task is measured when it is collected."""

    def __init__(self, scoring: NeedleScoring) -> None:
        """Take the model and documents to measure with.

        Args:
            scoring: Stays its owner's; closing the scorer leaves it alone.
        """
        self._scoring = scoring
        self._tasks: deque[Task] = deque()

    @property
    def capacity(self) -> int:
        """One task: there is one process."""
        return 1

    def submit(self, task: Task) -> None:
        """Take a task; returns at once.

        Args:
            task: What to measure.
        """
        self._tasks.append(task)

    def collect(self) -> list[Measurement]:
        """Measure the task that was submitted first.

        Returns:
            One measurement per document of the task; empty if there is no task.
        """
        if not self._tasks:
            return []
        task = self._tasks.popleft()
        return self._scoring.score(task.candidate, task.documents)

    def close(self) -> None:
        """Forget the tasks that were not collected."""
        self._tasks.clear()
