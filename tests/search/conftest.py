"""A space of 16 pairs, a scorer that measures a plain function of the factors, and a ledger in a temporary folder."""

import io
import json
from collections.abc import Callable, Iterable, Sequence
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.study import StudyDirection
from rich.console import Console

from results.measurement import Measurement, candidate_key
from results.store import MeasurementStore
from rope.factors import RescaleFactors
from search.ledger import Ledger
from search.objectives import Objectives
from search.panels import Panels
from search.progress import Plan, SearchProgress
from search.racing import Racing
from search.space import SearchSpace
from search.study import Trials
from workers.scorer import Scorer, Task, WorkerSpeed

Loss = Callable[[RescaleFactors, str], float]
Gradient = Callable[[RescaleFactors, str], Sequence[float]]

SPACE: dict[str, Any] = {
    "rotary_dim": 32,
    "base": 10_000.0,
    "original_length": 256,
    "target_length": 2048,
    "critical_dims": (3, 4, 5, 6, 7),
    "low": 8.0,
    "high": 16.0,
    "step": 0.01,
    "attention_temperature": 1.25,
}
PANELS = Panels(documents=("a", "b", "c"), size=3, batch_size=2)
PLAN = Plan(model="a model", original_length=256, target_length=2048, num_candidates=10, num_documents=100)


class FunctionScorer:
    """Measures tasks with a function of factors and document; a loss that is not finite is a failure.

    Without a generator tasks finish in the order of submission, with one in a random order. A task with gradient needs
    a function for that too: by log lambda of every pair, then by the attention temperature.
    """

    def __init__(
        self,
        loss: Loss,
        *,
        capacity: int = 1,
        rng: np.random.Generator | None = None,
        gradient: Gradient | None = None,
        speeds: tuple[WorkerSpeed, ...] = (),
    ) -> None:
        self._loss = loss
        self._gradient = gradient
        self._capacity = capacity
        self._rng = rng
        self._in_flight: list[Task] = []
        self.speeds = speeds

    @property
    def capacity(self) -> int:
        return self._capacity

    def submit(self, task: Task) -> None:
        assert len(self._in_flight) < self.capacity, "more tasks in flight than the capacity"
        self._in_flight.append(task)

    def collect(self) -> list[Measurement]:
        if not self._in_flight:
            return []
        chosen = 0 if self._rng is None else int(self._rng.integers(len(self._in_flight)))
        task = self._in_flight.pop(chosen)
        return [self._measure(task, document) for document in task.documents]

    @property
    def num_workers(self) -> int:
        return 1

    @property
    def num_retries(self) -> int:
        return 0

    @property
    def accelerators(self) -> tuple[str, ...]:
        return ()

    def close(self) -> None:
        self._in_flight.clear()

    def _measure(self, task: Task, document: str) -> Measurement:
        loss = self._loss(task.candidate, document)
        failed = not np.isfinite(loss)
        return Measurement(
            candidate=candidate_key(task.candidate),
            document=document,
            split="search",
            depth=0.5,
            sum_nll=nan if failed else loss,
            num_tokens=0 if failed else 1,
            seconds=0.0,
            failure=f"cannot read {document}" if failed else None,
            gradient=self._slope(task.candidate, document) if task.with_gradient and not failed else None,
        )

    def _slope(self, factors: RescaleFactors, document: str) -> tuple[float, ...]:
        assert self._gradient is not None, "a task asks for a gradient of which there is no function"
        return tuple(float(slope) for slope in self._gradient(factors, document))


@pytest.fixture(scope="session")
def oracle() -> Callable[[str], Any]:
    """Published numbers by file name."""
    folder = Path(__file__).parents[1] / "oracles"
    return lambda name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def make_space() -> Callable[..., SearchSpace]:
    """Makes a space of 16 pairs from 256 to 2048 tokens, with changes."""
    return lambda **changes: SearchSpace(**SPACE | changes)


@pytest.fixture(scope="session")
def space(make_space: Callable[..., SearchSpace]) -> SearchSpace:
    return make_space()


@pytest.fixture(scope="session")
def tiny_space(make_space: Callable[..., SearchSpace]) -> SearchSpace:
    """Ten candidates: two free pairs, non-decreasing, on four grid points."""
    return make_space(rotary_dim=8, critical_dims=(2,), low=8.0, high=8.03)


@pytest.fixture(scope="session")
def make_scorer() -> Callable[..., Scorer]:
    """Makes a scorer from a function of factors and document id."""
    return FunctionScorer


@pytest.fixture
def make_ledger(tmp_path: Path) -> Callable[..., Ledger]:
    """Makes a ledger with changes to: every candidate on a, b and c, no race, a new study in memory.

    The measurements go to the temporary folder.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def make(
        scorer: Scorer,
        *,
        panels: Panels = PANELS,
        objectives: Objectives | None = None,
        racing: Racing | None = None,
        trials: Trials | None = None,
        store: MeasurementStore | None = None,
        measurements: Iterable[Measurement] = (),
    ) -> Ledger:
        chosen_by = objectives or Objectives()
        directions = [StudyDirection[direction.upper()] for direction in chosen_by.directions]
        return Ledger(
            trials=trials or Trials(optuna.create_study(directions=directions)),
            scorer=scorer,
            store=store or MeasurementStore(tmp_path),
            progress=SearchProgress(PLAN, console=Console(file=io.StringIO())),
            panels=panels,
            objectives=chosen_by,
            racing=racing,
            measurements=measurements,
        )

    return make
