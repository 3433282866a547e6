"""ScoringActor: the thin shell in which a Ray worker holds a Scoring. It starts fast: torch comes with the scoring."""

import os
from collections.abc import Sequence
from typing import NamedTuple

import ray

from needles.document import NeedleDocument
from results.measurement import Measurement
from workers.accelerators import Accelerator, accelerators_in_use
from workers.scorer import ScoringFactory, Task, WorkerSpeed, measure_task, speed_of


class WorkerPlace(NamedTuple):
    """Where a worker runs."""

    node: str
    """Address of its machine."""
    pid: int
    """Its process there."""
    accelerators: tuple[Accelerator, ...]
    """Devices that hold its model; none on CPUs."""
    speed: WorkerSpeed | None = None
    """What its device can do; None if its scoring does not say it."""


class ScoringActor:
    """One worker of a `RayPool`; it only forwards. `start` comes before `score`.

    There is no constructor: an error in it would arrive as a dead actor and not as itself, and time that it takes could
    not be told from time that Ray takes to find room.
    """

    def answer(self) -> None:
        """Return: the process is there and has nothing else to do."""

    def start(self, make: ScoringFactory, documents: Sequence[NeedleDocument]) -> WorkerPlace:
        """Make the scoring.

        Args:
            make: Makes the scoring.
            documents: Documents that tasks name by id.

        Returns:
            Where that was.

        Raises:
            Exception: As `make` does; ValueError for a model that cannot be loaded.
        """
        self._scoring = make(documents)
        node: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        return WorkerPlace(node, os.getpid(), accelerators_in_use(), speed_of(self._scoring))

    def score(self, task: Task) -> list[Measurement]:
        """Return the measurements of a task.

        Args:
            task: What to measure.

        Returns:
            One measurement or failure per document.

        Raises:
            Exception: As the scoring does.
        """
        return measure_task(self._scoring, task)
