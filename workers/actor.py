"""ScoringActor: the thin shell in which a Ray worker holds a Scoring. It starts fast: torch comes with the scoring."""

import os
from collections.abc import Sequence
from typing import NamedTuple

import ray

from needles.document import NeedleDocument
from results.measurement import Measurement
from workers.accelerators import Accelerator, accelerators_in_use
from workers.scorer import ScoringFactory, Task


class WorkerPlace(NamedTuple):
    """Where a worker runs."""

    node: str
    """Address of its machine."""
    pid: int
    """Its process there."""
    accelerators: tuple[Accelerator, ...]
    """Devices that hold its model; none on CPUs."""


class ScoringActor:
    """One worker of a `RayPool`; it only forwards. `start` comes first."""

    def __init__(self, make: ScoringFactory, documents: Sequence[NeedleDocument]) -> None:
        """Keep what `start` needs.

        Args:
            make: Makes the scoring.
            documents: Documents that tasks name by id.
        """
        self._make = make
        self._documents = documents

    def start(self) -> WorkerPlace:
        """Make the scoring; apart from the constructor so that an error arrives as itself and not as a dead actor.

        Returns:
            Where that was.

        Raises:
            Exception: As `make` does; ValueError for a model that cannot be loaded.
        """
        self._scoring = self._make(self._documents)
        node: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        return WorkerPlace(node, os.getpid(), accelerators_in_use())

    def score(self, task: Task) -> list[Measurement]:
        """Return the measurements of a task.

        Args:
            task: What to measure.

        Returns:
            One measurement or failure per document.

        Raises:
            Exception: As the scoring does.
        """
        return self._scoring.score(task.candidate, task.documents)
