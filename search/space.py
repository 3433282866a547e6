"""What the search is free to change: one critical dimension and the factors from it upward, on an integer grid."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution

from rope.factors import RescaleFactors
from rope.longrope2 import longrope2_factors

CRITICAL_DIM = "critical_dim"


class Genome(NamedTuple):
    """A candidate as the operators see it; equal genomes are the same candidate, so it is its own key."""

    critical_dim: int
    """Index of the first free pair, from 0."""
    grid: tuple[int, ...]
    """Factors of the pairs `critical_dim`, `critical_dim + 1`, ... in grid steps; non-decreasing."""


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """All monotone factors on a grid whose pairs below the critical dimension follow lambda_rcd^(i/rcd).

    Factors are kept as integer multiples of `step`: floor division of floats drifts (21.81 // 0.01 is 2180).

    Source: LongRoPE2, arXiv:2502.20082, section 3.3, algorithms 1 and 2.
    """

    rotary_dim: int
    """Rotated dimensions per head."""
    base: float
    """RoPE base."""
    original_length: int
    """Pre-training window, tokens."""
    target_length: int
    """Extended window, tokens."""
    critical_dims: tuple[int, ...]
    """Candidates for the real critical dimension, ascending pair indices."""
    low: float
    """Smallest factor at and above the critical dimension."""
    high: float
    """Largest factor."""
    step: float
    """Grid step of the factors."""
    attention_temperature: float
    """Multiplier of cos and sin that every candidate carries."""

    def __post_init__(self) -> None:
        num_pairs = self.rotary_dim // 2
        if not self.critical_dims or not all(0 < dim < num_pairs for dim in self.critical_dims):
            raise ValueError(
                f"critical dimensions must be pair indices from 1 to {num_pairs - 1}, got {list(self.critical_dims)}. "
                "Set space.critical_dims."
            )
        if not (math.isfinite(self.step) and self.step > 0):
            raise ValueError(f"the grid step must be a number above 0, got {self.step:g}. Set space.step.")
        if not 1 < self.low <= self.high < math.inf or self.low_step > self.high_step:
            raise ValueError(
                "the bounds of the factors must hold a grid point with 1 < low <= high, got "
                f"low {self.low:g}, high {self.high:g}, step {self.step:g}. Set space.low and space.high."
            )

    @property
    def num_pairs(self) -> int:
        """Frequency pairs of the model."""
        return self.rotary_dim // 2

    @property
    def low_step(self) -> int:
        """Smallest grid index inside the bounds."""
        return math.ceil(round(self.low / self.step, 6))

    @property
    def high_step(self) -> int:
        """Largest grid index inside the bounds."""
        return math.floor(round(self.high / self.step, 6))

    def factors(self, genome: Genome, *, method: str) -> RescaleFactors:
        """Return the factors that a genome stands for, the pairs below its critical dimension filled in."""
        factors = longrope2_factors(
            self.rotary_dim,
            self.base,
            original_length=self.original_length,
            target_length=self.target_length,
            critical_dim=genome.critical_dim,
            right_values=[round(index * self.step, 10) for index in genome.grid],
        )
        return replace(factors, method=method, attention_temperature=self.attention_temperature)

    def distributions(self) -> dict[str, BaseDistribution]:
        """Return the Optuna parameters of a candidate: its critical dimension and one factor per pair."""
        lambdas = {lambda_name(pair): FloatDistribution(1.0, self.high) for pair in range(self.num_pairs)}
        return {CRITICAL_DIM: IntDistribution(self.critical_dims[0], self.critical_dims[-1]), **lambdas}

    def candidate(self, params: Mapping[str, float], *, method: str) -> RescaleFactors:
        """Return the factors that Optuna's parameters stand for."""
        return self.factors(self.from_params(params), method=method)

    def to_params(self, genome: Genome) -> dict[str, float | int]:
        """Return a genome as values of `distributions`."""
        values = self.factors(genome, method="longrope2").values
        return {CRITICAL_DIM: genome.critical_dim} | {lambda_name(i): value for i, value in enumerate(values)}

    def from_params(self, params: Mapping[str, float | int]) -> Genome:
        """Return the genome that `to_params` turned into these parameters."""
        critical_dim = int(params[CRITICAL_DIM])
        pairs = range(critical_dim, self.num_pairs)
        return Genome(critical_dim, tuple(round(params[lambda_name(pair)] / self.step) for pair in pairs))


def lambda_name(pair: int) -> str:
    """Return the Optuna parameter name of one pair's factor; zero-padded, so that a dashboard sorts it right."""
    return f"lambda_{pair:02d}"
