"""CMA-ES over monotone factors of all pairs and the attention temperature, as an Optuna sampler."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from cmaes import CMA
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from rope.factors import RescaleFactors
from search.monotone_space import MonotoneSpace
from search.samplers.generational import GenerationalSampler

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


class CmaSampler(GenerationalSampler):
    """Samples by CMA-ES from the best formula with its best temperature.

    A point holds the square roots of the increments of log lambda, so every point is monotone and every formula has
    one; the temperature is one more coordinate. The optimiser is rebuilt by asking again what was asked and telling
    what was measured.

    Source: N. Hansen, The CMA Evolution Strategy: A Tutorial, arXiv:1604.00772.
    """

    method = "cma-search"

    def __init__(self, space: MonotoneSpace, config: CmaConfig, *, start: RescaleFactors, seed: int) -> None:
        self.space: MonotoneSpace = space
        self._config = config
        self._optimizer = CMA(
            mean=to_point(start), sigma=config.sigma, seed=seed, population_size=config.population_size
        )
        self._points: list[Point] = []
        self._generation = -1

    @property
    def generation_sizes(self) -> list[int]:
        """Candidates of each generation."""
        return [self._config.population_size] * self._config.num_generations

    def sample_candidate(
        self, study: Study, trial: FrozenTrial, earlier: list[FrozenTrial]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the next point's parameters; the generations before its own must be told."""
        generation, place = divmod(len(earlier), self._config.population_size)
        while self._generation < generation:
            self._advance(earlier)
        params = self.space.to_params(*from_point(self._points[place]))
        return params, {"generation": generation, "operator": "cma"}

    def _advance(self, earlier: Sequence[FrozenTrial]) -> None:
        """Tell the optimiser its last generation, and ask it for the next."""
        size = self._config.population_size
        if self._points:
            told = earlier[self._generation * size : (self._generation + 1) * size]
            self._optimizer.tell(list(zip(self._points, _losses(told), strict=True)))
        self._points = [self._optimizer.ask() for _ in range(size)]
        self._generation += 1


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
