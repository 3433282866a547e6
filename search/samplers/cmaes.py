"""CMA-ES over monotone factors and the attention temperature, as an Optuna sampler."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from cmaes import CMA
from optuna.trial import FrozenTrial, TrialState

from rope.factors import RescaleFactors
from search.monotone_space import MonotoneSpace
from search.parametrization import Vector
from search.samplers.joint import NUM_UPDATES, JointSampler, Proposal, loss_of

FAILED_LOSS = 1e3
"""Loss of what could not be measured, nats per token: worse than all that could."""


@dataclass(frozen=True, kw_only=True)
class CmaesConfig:
    """How CMA-ES runs."""

    population_size: int = 14
    """Candidates a generation."""
    num_generations: int = 40
    """Generations."""
    sigma: float = 0.1
    """First step size, in coordinates (square roots of parts of log lambda) and in temperature."""
    num_restarts: int = 2
    """Times that the search may begin anew, from the mean of its best generation, where it has converged."""

    def __post_init__(self) -> None:
        if self.population_size < 4:
            raise ValueError(f"cmaes.population_size must be at least 4, got {self.population_size}. Raise it.")
        if self.num_generations < 1:
            raise ValueError(f"cmaes.num_generations must be at least 1, got {self.num_generations}. Raise it.")
        if not 0 < self.sigma < math.inf:
            raise ValueError(f"cmaes.sigma must be a number above 0, got {self.sigma}. Correct it.")
        if self.num_restarts < 0:
            raise ValueError(f"cmaes.num_restarts must not be negative, got {self.num_restarts}. Correct it.")


class CmaesSampler(JointSampler):
    """Samples by CMA-ES over the points of a monotone space.

    A generation is told to the optimiser when all of its candidates are finished, and the generations in their order,
    so that its candidates, which share their documents, are compared with one another alone. Nobody waits for that:
    until then candidates of the next generations are drawn from what is known. The optimiser is rebuilt by asking
    again what was asked, each time after as many updates as there had been.

    Where it has converged by the criteria of the cmaes library it begins anew, from the mean of the generation with
    the lowest median loss and with the first step size.

    Source: N. Hansen, The CMA Evolution Strategy: A Tutorial, arXiv:1604.00772.
    """

    method = "cmaes-search"

    def __init__(self, space: MonotoneSpace, config: CmaesConfig, *, start: RescaleFactors, seed: int) -> None:
        self.space: MonotoneSpace = space
        self._config = config
        self._seed = seed
        self._num_restarts = 0
        self._optimizer = self._begin(space.point(start))
        self._points: list[Vector] = []
        self._means: list[Vector] = []
        self._best = (math.inf, self._optimizer.mean)

    @property
    def generation_sizes(self) -> list[int]:
        """Candidates of each generation."""
        return [self._config.population_size] * self._config.num_generations

    def propose(self, earlier: Sequence[FrozenTrial]) -> Proposal:
        """Return the next point; in the generational schedule the generations before its own must be told."""
        self._take_up(earlier)
        self._update_until(math.inf, earlier)
        self._points.append(self._optimizer.ask())
        params = self.space.params_of(self._points[-1])
        generation = (len(self._points) - 1) // self._config.population_size
        return Proposal(params, generation, "cmaes", (), {NUM_UPDATES: len(self._means)})

    def picks(self, earlier: Sequence[FrozenTrial]) -> list[RescaleFactors]:
        """Return the mean over the second half of all updates, then the last mean; none before the first update."""
        self._take_up(earlier)
        self._update_until(math.inf, earlier)
        if not self._means:
            return []
        # the sign of a coordinate does not matter to its candidate, but it does to a mean
        coordinates = np.abs(self._means[len(self._means) // 2 :])
        return [
            self.space.factors_of(point, method=self.method) for point in (coordinates.mean(axis=0), coordinates[-1])
        ]

    def _begin(self, mean: Vector) -> CMA:
        num_coordinates, largest = self.space.parametrization.num_coordinates, self.space.largest_coordinate
        sides = [[-largest, largest]] * num_coordinates
        sides += [list(self.space.temperatures)] * self.space.is_temperature_free
        bounds = np.array(sides)
        return CMA(
            mean=np.clip(mean, *bounds.T),  # a formula may be warmer than the space
            sigma=self._config.sigma,
            bounds=bounds,
            seed=self._seed + 1_000_003 * self._num_restarts,
            population_size=self._config.population_size,
        )

    def _take_up(self, earlier: Sequence[FrozenTrial]) -> None:
        """Ask again for the candidates that a process asked for that is gone."""
        for trial in earlier[len(self._points) :]:
            self._update_until(trial.system_attrs[NUM_UPDATES], earlier)
            self._points.append(self._optimizer.ask())
            if self.space.params_of(self._points[-1]) != trial.params:
                raise ValueError(
                    f"a search must be taken up with the libraries that it began with, got another point than trial "
                    f"{trial.number} has. Restore cmaes and numpy as they were, or start a new run."
                )

    def _update_until(self, num_updates: float, earlier: Sequence[FrozenTrial]) -> None:
        size = self._config.population_size
        while len(self._means) < num_updates:
            places = range(len(self._means) * size, (len(self._means) + 1) * size)
            generation = earlier[places.start : places.stop]
            if len(generation) < size or not all(trial.state.is_finished() for trial in generation):
                return
            losses = [FAILED_LOSS if trial.state == TrialState.FAIL else loss_of(trial) for trial in generation]
            self._optimizer.tell([(self._points[place], loss) for place, loss in zip(places, losses, strict=True)])
            self._means.append(self._optimizer.mean.copy())
            self._best = min(self._best, (float(np.median(losses)), self._means[-1]), key=lambda found: found[0])
            if self._num_restarts < self._config.num_restarts and self._optimizer.should_stop():
                self._num_restarts += 1
                self._optimizer = self._begin(self._best[1])
