"""CMA-ES over monotone factors of all pairs and the attention temperature, as an Optuna sampler."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from cmaes import CMA
from optuna.trial import FrozenTrial, TrialState

from rope.factors import RescaleFactors
from search.monotone_space import MonotoneSpace
from search.samplers.joint import GENERATION, JointSampler, Proposal, Schedule

Point = npt.NDArray[np.float64]
"""Square roots of the increments of log lambda, pair by pair, then the temperature; shape (rotary_dim / 2 + 1,)."""


@dataclass(frozen=True, kw_only=True)
class CmaConfig:
    """How CMA-ES runs."""

    population_size: int = 14
    """Candidates a generation."""
    num_generations: int = 10
    """Generations."""
    sigma: float = 0.1
    """First step size, in square roots of log increments and in temperature."""
    high: float | None = None
    """Largest factor; default: four times the scale."""

    def __post_init__(self) -> None:
        if self.population_size < 4:
            raise ValueError(f"cma.population_size must be at least 4, got {self.population_size}. Raise it.")
        if self.num_generations < 1:
            raise ValueError(f"cma.num_generations must be at least 1, got {self.num_generations}. Raise it.")
        if not 0 < self.sigma < math.inf:
            raise ValueError(f"cma.sigma must be a number above 0, got {self.sigma}. Correct it.")


class CmaSampler(JointSampler):
    """Samples by CMA-ES from the best formula with its best temperature.

    A point holds the square roots of the increments of log lambda, so every point is monotone and every formula has
    one; the temperature is one more coordinate. The optimiser is rebuilt by asking again what was asked and telling
    what was measured: in the generational schedule the generations one by one, in the steady one as many finished
    trials as make a generation, whenever so many are there, in the order in which they finished. A candidate's
    generation counts the updates before it.

    Source: N. Hansen, The CMA Evolution Strategy: A Tutorial, arXiv:1604.00772.
    """

    method = "cma-search"

    def __init__(
        self,
        space: MonotoneSpace,
        config: CmaConfig,
        *,
        start: RescaleFactors,
        seed: int,
        schedule: Schedule = "generational",
    ) -> None:
        self.space: MonotoneSpace = space
        self._config = config
        self._steady = schedule == "steady"
        self._optimizer = CMA(
            mean=to_point(start), sigma=config.sigma, seed=seed, population_size=config.population_size
        )
        self._points: list[Point] = []
        self._num_updates = 0
        self._told: set[int] = set()

    @property
    def generation_sizes(self) -> list[int]:
        """Candidates of each generation."""
        return [self._config.population_size] * self._config.num_generations

    def propose(self, earlier: Sequence[FrozenTrial]) -> Proposal:
        """Return the next point; in the generational schedule the generations before its own must be told."""
        for trial in earlier[len(self._points) :]:  # asked for by a process that is gone
            self._update_until(trial.user_attrs[GENERATION], earlier)
            self._points.append(self._optimizer.ask())
            if self.space.to_params(*from_point(self._points[-1])) != trial.params:
                raise ValueError(
                    f"a search must be taken up with the libraries that it began with, got another point than trial "
                    f"{trial.number} has. Restore cmaes and numpy as they were, or start a new run."
                )
        self._update_until(self._num_updates_due(earlier), earlier)
        point = self._optimizer.ask()
        self._points.append(point)
        return Proposal(self.space.to_params(*from_point(point)), self._num_updates, "cma", ())

    def _num_updates_due(self, earlier: Sequence[FrozenTrial]) -> int:
        if self._steady:
            return sum(trial.state.is_finished() for trial in earlier) // self._config.population_size
        return len(earlier) // self._config.population_size

    def _update_until(self, num_updates: int, earlier: Sequence[FrozenTrial]) -> None:
        while self._num_updates < num_updates:
            chosen = self._next_to_tell(earlier)
            if len(chosen) < self._config.population_size:
                return  # a clock that was set back between two processes hides who finished first
            losses = _losses([earlier[place] for place in chosen])
            self._optimizer.tell([(self._points[place], loss) for place, loss in zip(chosen, losses, strict=True)])
            self._told.update(chosen)
            self._num_updates += 1

    def _next_to_tell(self, earlier: Sequence[FrozenTrial]) -> list[int]:
        """Return the places of the trials of the next update."""
        size = self._config.population_size
        if not self._steady:
            return list(range(self._num_updates * size, (self._num_updates + 1) * size))
        finished = [
            (trial.datetime_complete, place)
            for place, trial in enumerate(earlier)
            if trial.datetime_complete is not None and place < len(self._points) and place not in self._told
        ]
        return [place for _, place in sorted(finished)[:size]]


def to_point(factors: RescaleFactors) -> Point:
    """Return the point of factors; what is below 1 or not monotone is raised to what is."""
    logs = np.log(np.maximum.accumulate(np.maximum(factors.values, 1.0)))
    return np.append(np.sqrt(np.diff(logs, prepend=0.0)), factors.attention_temperature)


def from_point(point: Point) -> tuple[list[float], float]:
    """Return the factors and the temperature of a point."""
    values: list[float] = np.exp(np.cumsum(point[:-1] ** 2)).tolist()
    return values, float(point[-1])


def _losses(trials: Sequence[FrozenTrial]) -> list[float]:
    """Return losses in the order of trials; what failed counts as the worst of its generation."""
    values = [trial.value if trial.state == TrialState.COMPLETE else None for trial in trials]
    worst = max((value for value in values if value is not None), default=0.0)
    return [worst if value is None else value for value in values]
