"""ScoringActor: the thin shell in which a Ray worker holds NeedleScoring."""

from collections.abc import Callable, Sequence

from needles.document import NeedleDocument
from results.measurement import Measurement
from workers.model import LoadedModel
from workers.scorer import Task
from workers.scoring import NeedleScoring

ModelLoader = Callable[[], LoadedModel]
"""Loads the model where it is called: `functools.partial(load_model, path, ...)`, so that no weights travel."""


class ScoringActor:
    """One worker of a `RayPool`; it only forwards. `start` comes first."""

    def __init__(self, load: ModelLoader, documents: Sequence[NeedleDocument]) -> None:
        """Keep what `start` needs.

        Args:
            load: Loads the model.
            documents: Documents that tasks name by id.
        """
        self._load = load
        self._documents = documents

    def start(self) -> None:
        """Load the model; apart from the constructor so that an error arrives as itself and not as a dead actor.

        Raises:
            ValueError: As `load_model` and `NeedleScoring` do.
        """
        self._scoring = NeedleScoring(self._load(), self._documents)

    def score(self, task: Task) -> list[Measurement]:
        """Return the measurements of a task.

        Args:
            task: What to measure.

        Returns:
            One measurement or failure per document.
        """
        return self._scoring.score(task.candidate, task.documents)
