"""Descent along the gradient of the needle loss, a few documents a step, as an Optuna sampler."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from rope.factors import RescaleFactors
from search.monotone_space import MonotoneSpace
from search.parametrization import Vector
from search.samplers.joint import GRADIENT, NUM_UPDATES, JointSampler, Proposal, finished_places

SMALLEST_COORDINATE = 0.01
"""A coordinate of 0 would stay there: a loss has no slope by what is squared."""
LAST_RATE = 0.05
"""Share of the learning rate that the last step has."""
MOST_FAILURES = 3
"""Steps that may fail before the first that does not: memory that is too short for one is so for all."""
LARGEST_GRADIENT = 1.0
"""Norm to which gradients are cut: one document whose needle is about to be lost must not throw the search off."""


@dataclass(frozen=True, kw_only=True)
class GradientConfig:
    """How the descent runs: Adam on the coordinates, with a rate that falls along a cosine."""

    num_steps: int = 200
    """Steps."""
    learning_rate: float = 0.008
    """First step size, in coordinates (square roots of parts of log lambda) and in temperature."""
    beta1: float = 0.9
    """Decay of Adam's mean of gradients."""
    beta2: float = 0.95
    """Decay of Adam's mean of squared gradients."""

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"gradient.num_steps must be at least 1, got {self.num_steps}. Raise it.")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"gradient.learning_rate must be a number above 0, got {self.learning_rate}. Correct it.")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"gradient.{name} must lie in [0, 1), got {getattr(self, name)}. Correct it.")


class GradientSampler(JointSampler):
    """Walks from its start through the points of a monotone space, a step for every candidate that is finished.

    Each candidate is measured on the next few documents, so that the walk follows the loss on all of them and cannot
    fit a few. Where workers outnumber the documents of a step, the next candidates are asked for before the last ones
    are finished: then a gradient is followed that is some steps old, by a step as many times shorter, and one point
    may be measured on the documents of several steps. A candidate that failed makes no step.

    Source: D. P. Kingma and J. Ba, Adam: A Method for Stochastic Optimization, arXiv:1412.6980; B. T. Polyak and
    A. B. Juditsky, Acceleration of Stochastic Approximation by Averaging, SIAM J. Control Optim. 30(4), 1992; W. Zhang
    et al., Staleness-aware Async-SGD for Distributed Deep Learning, arXiv:1511.05950.
    """

    method = "gradient-search"
    needs_gradient = True

    def __init__(self, space: MonotoneSpace, config: GradientConfig, *, start: RescaleFactors) -> None:
        self.space: MonotoneSpace = space
        self._config = config
        point = self._kept_inside(space.point(start))
        self._points = [point]
        self._moments = np.zeros((2, len(point)))
        self._seen: set[int] = set()

    @property
    def generation_sizes(self) -> list[int]:
        """One candidate a generation."""
        return [1] * self._config.num_steps

    def propose(self, earlier: Sequence[FrozenTrial]) -> Proposal:
        """Return the point to which the gradients that are known lead.

        Raises:
            ValueError: The first few could not be measured, nor any since.
        """
        self._follow(earlier)
        if len(self._points) == 1 and len(self._seen) >= MOST_FAILURES:
            reason = next(trial.user_attrs["failure"] for trial in earlier if trial.state == TrialState.FAIL)
            raise ValueError(
                f"the gradient must be measurable, got {len(self._seen)} failures at the start, the first: {reason}. "
                "Use --algorithm cmaes, which needs none."
            )
        params = self.space.params_of(self._points[-1])
        return Proposal(params, len(earlier), "gradient step", (), {NUM_UPDATES: len(self._points) - 1})

    def picks(self, earlier: Sequence[FrozenTrial]) -> list[RescaleFactors]:
        """Return the mean of the points of the second half of the walk, that of the last quarter, and its end."""
        self._follow(earlier)
        num = len(self._points)
        means = [np.mean(self._points[num * share // 4 :], axis=0) for share in (2, 3)]
        return [self.space.factors_of(point, method=self.method) for point in (*means, self._points[-1])]

    def _follow(self, earlier: Sequence[FrozenTrial]) -> None:
        for place in finished_places(earlier):
            if place not in self._seen:
                self._seen.add(place)
                if earlier[place].state == TrialState.COMPLETE:
                    self._step(earlier[place])

    def _step(self, trial: FrozenTrial) -> None:
        config, num_pairs = self._config, len(self.space.template.values)
        by_factors = np.array(trial.user_attrs[GRADIENT])
        measured_at = self._points[trial.system_attrs[NUM_UPDATES]]
        age = len(self._points) - 1 - trial.system_attrs[NUM_UPDATES]
        num_coordinates = self.space.parametrization.num_coordinates
        by_coordinates = self.space.parametrization.gradient(measured_at[:num_coordinates], by_factors[:num_pairs])
        gradient = np.append(by_coordinates, by_factors[num_pairs:])[: self.space.num_dims]
        gradient *= min(1.0, LARGEST_GRADIENT / max(float(np.linalg.norm(gradient)), 1e-12))
        step = len(self._points)
        mean, square = self._moments
        mean += (1 - config.beta1) * (gradient - mean)
        square += (1 - config.beta2) * (gradient**2 - square)
        direction = mean / (1 - config.beta1**step) / (np.sqrt(square / (1 - config.beta2**step)) + 1e-12)
        self._points.append(self._kept_inside(self._points[-1] - self._rate(step - 1) / (1 + age) * direction))

    def _rate(self, step: int) -> float:
        share = (1 + math.cos(math.pi * min(1.0, step / self._config.num_steps))) / 2
        return self._config.learning_rate * (LAST_RATE + (1 - LAST_RATE) * share)

    def _kept_inside(self, point: Vector) -> Vector:
        num_coordinates = self.space.parametrization.num_coordinates
        inside = point.copy()
        inside[:num_coordinates] = np.clip(point[:num_coordinates], SMALLEST_COORDINATE, self.space.largest_coordinate)
        inside[num_coordinates:] = np.clip(point[num_coordinates:], *self.space.temperatures)
        return inside
