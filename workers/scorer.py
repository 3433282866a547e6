"""The Scorer protocol: where (candidate, documents) tasks go to be measured, in this process or on a cluster."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

from needles.document import NeedleDocument
from results.measurement import Measurement, candidate_key
from rope.factors import RescaleFactors


@dataclass(frozen=True)
class Task:
    """One forward: a candidate on a batch of documents."""

    candidate: RescaleFactors
    """Factors to install."""
    documents: tuple[str, ...]
    """Ids of documents of equal length."""
    with_gradient: bool = False
    """Whether the measurements must say how the loss changes with the factors."""


class Scoring(Protocol):
    """Measures one task after the other, in one process."""

    def score(self, candidate: RescaleFactors, document_ids: Sequence[str]) -> list[Measurement]:
        """Measure factors on documents of equal length.

        Args:
            candidate: Factors to install.
            document_ids: Ids of documents given at construction.

        Returns:
            One measurement or failure per document, in the order of the ids. What it raises may be tried again.
        """


@runtime_checkable
class GradientScoring(Scoring, Protocol):
    """A scoring that can also differentiate the loss."""

    def score_with_gradient(self, candidate: RescaleFactors, document_ids: Sequence[str]) -> list[Measurement]:
        """Measure factors on documents, and the gradient of each document's loss.

        Args:
            candidate: Factors to install.
            document_ids: Ids of documents given at construction.

        Returns:
            As `score`, with a gradient in every measurement that did not fail.
        """


class WorkerSpeed(NamedTuple):
    """What a worker's device can do, measured when its scoring was made."""

    device: str
    """What it is called: "NVIDIA H200", or the CPU's model with the number of its threads."""
    ceiling: float
    """FLOP/s of a plain matrix product in the model's precision."""
    batch_sizes: dict[int, int]
    """Documents per forward that were fastest, by the documents' length in tokens; may be empty."""


@runtime_checkable
class TimedScoring(Scoring, Protocol):
    """A scoring that also says what its device can do."""

    @property
    def speed(self) -> WorkerSpeed:
        """What the device can do."""


ScoringFactory: TypeAlias = Callable[[Sequence[NeedleDocument]], Scoring]
"""Makes a `Scoring` where it is called: `functools.partial(load_scoring, load=...)`, so that no weights travel."""


class ClusterError(RuntimeError):
    """No worker is left or the cluster is gone: the run must stop, in one line. What was measured is not lost."""


class Scorer(Protocol):
    """Measures tasks. Every task that was submitted comes back once, as one measurement or failure per document."""

    @property
    def capacity(self) -> int:
        """Tasks worth having in flight: enough that nobody waits for the driver."""

    @property
    def num_workers(self) -> int:
        """Workers that can score now."""

    @property
    def num_retries(self) -> int:
        """Tasks that were tried again so far."""

    @property
    def accelerators(self) -> tuple[str, ...]:
        """Name of each accelerator in use, as ("NVIDIA H200",) * 8; empty on CPUs."""

    @property
    def speeds(self) -> tuple[WorkerSpeed, ...]:
        """What each worker's device can do; workers that cannot score now or do not say it are left out."""

    def submit(self, task: Task) -> None:
        """Take a task; returns at once.

        Args:
            task: What to measure.
        """

    def collect(self) -> list[Measurement]:
        """Wait until one of the submitted tasks is finished.

        Returns:
            One measurement or failure per document of that task; empty only if no task is in flight.

        Raises:
            ClusterError: No task can be measured any more.
        """

    def close(self) -> None:
        """Give back what the scorer holds; tasks in flight are lost. Harmless when called twice."""


def measure_task(scoring: Scoring, task: Task) -> list[Measurement]:
    """Return the measurements of a task, with gradients where it asks for them.

    Args:
        scoring: Measures it.
        task: What to measure.

    Returns:
        One measurement or failure per document, in the order of the task.

    Raises:
        ValueError: The task asks for gradients and the scoring has none.
        Exception: As the scoring does.
    """
    if not task.with_gradient:
        return scoring.score(task.candidate, task.documents)
    if not isinstance(scoring, GradientScoring):
        raise ValueError(
            f"a task with gradients must go to a scoring that has them, got {type(scoring).__name__}. "
            "Choose a search that needs none."
        )
    return scoring.score_with_gradient(task.candidate, task.documents)


def speed_of(scoring: Scoring) -> WorkerSpeed | None:
    """Return what a scoring says of its device; None if it does not say it.

    Args:
        scoring: Any scoring.
    """
    return scoring.speed if isinstance(scoring, TimedScoring) else None


def failed_measurements(
    task: Task, documents: Mapping[str, NeedleDocument], reason: str, *, seconds: float = 0.0
) -> list[Measurement]:
    """Return a task's measurements when there are none to be had.

    Args:
        task: What was to be measured.
        documents: Documents by id, the task's among them.
        reason: Why it was not, in one line.
        seconds: Wall time spent on each document.

    Returns:
        One failure per document of the task.
    """
    candidate = candidate_key(task.candidate)
    return [
        Measurement(
            candidate=candidate,
            document=document,
            split=documents[document].split,
            depth=documents[document].depth,
            sum_nll=nan,
            num_tokens=0,
            seconds=seconds,
            failure=reason,
        )
        for document in task.documents
    ]


def failure_reason(error: BaseException) -> str:
    """Return an exception as the reason of a failure, in one line; running out of memory is named as such.

    Args:
        error: What was raised.

    Returns:
        The kind of error and the first line of its message.
    """
    first_line = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
    return f"{'out of memory' if is_out_of_memory(error) else type(error).__name__}: {first_line}"


def given_up(num_tries: int, reason: str) -> str:
    """Return the reason of a failure that was tried before.

    Args:
        num_tries: How often it was tried in all; at least 1.
        reason: Why the last try failed.
    """
    return reason if num_tries == 1 else f"given up after {num_tries} tries: {reason}"


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory was short, on whatever device; known by name, so that torch need not be there.

    Args:
        error: What was raised.
    """
    named = any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
    # torch's allocator for the CPU has no exception of its own
    return named or isinstance(error, MemoryError) or "can't allocate memory" in str(error)
