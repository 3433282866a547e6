"""Monotone factors and the attention temperature, without a critical dimension: what CMA-ES and others search."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from optuna.distributions import BaseDistribution, FloatDistribution

from rope.factors import RescaleFactors
from search.parametrization import Parametrization, Vector
from search.space import lambda_name

TEMPERATURE = "attention_temperature"
DIGITS = 6
"""Decimal digits that parameters are rounded to, so that a study gives back exactly what was measured."""


@dataclass(frozen=True, kw_only=True)
class MonotoneSpace:
    """Non-decreasing lists of factors from 1 to a bound, with a temperature beside them, as points of few coordinates.

    A point holds the coordinates of the parametrization, then the temperature where it is free; shape (num_dims,).
    """

    template: RescaleFactors
    """Factors of the same model and window; only their temperature matters, and only where it is not free."""
    parametrization: Parametrization
    """Which factors there are."""
    high: float
    """Largest factor."""
    temperatures: tuple[float, float] = (0.8, 2.0)
    """Smallest and largest attention temperature; two equal numbers fix it."""

    def __post_init__(self) -> None:
        if not self.high > 1:
            raise ValueError(f"the largest factor must be above 1, got {self.high:g}. Set monotone.high.")

    @property
    def is_temperature_free(self) -> bool:
        """Whether a point has a coordinate for the temperature."""
        return self.temperatures[0] < self.temperatures[1]

    @property
    def num_dims(self) -> int:
        """Numbers of a point."""
        return self.parametrization.num_coordinates + self.is_temperature_free

    @property
    def largest_coordinate(self) -> float:
        """The coordinate that alone reaches the largest factor."""
        return math.sqrt(math.log(self.high))

    def point(self, factors: RescaleFactors) -> Vector:
        """Return the point of factors, or of those nearest to them, shape (num_dims,)."""
        coordinates = self.parametrization.coordinates(factors.values)
        return np.append(coordinates, factors.attention_temperature) if self.is_temperature_free else coordinates

    def params_of(self, point: Vector) -> dict[str, float]:
        """Return a point as values of `distributions`, cut to the bounds.

        Args:
            point: Shape (num_dims,).
        """
        values = self.parametrization.values(point[: self.parametrization.num_coordinates])
        temperature = point[-1] if self.is_temperature_free else self.temperatures[0]
        lambdas = {lambda_name(pair): _cut(value, 1.0, self.high) for pair, value in enumerate(values)}
        return {**lambdas, TEMPERATURE: _cut(temperature, *self.temperatures)}

    def factors_of(self, point: Vector, *, method: str) -> RescaleFactors:
        """Return the factors of a point, under the searching method's name."""
        return MonotoneSpace.candidate(self, self.params_of(point), method=method)

    def distributions(self) -> dict[str, BaseDistribution]:
        """Return the Optuna parameters of a candidate: one factor per pair, and the temperature."""
        lambdas = {lambda_name(pair): FloatDistribution(1.0, self.high) for pair in range(len(self.template.values))}
        return {**lambdas, TEMPERATURE: FloatDistribution(*self.temperatures)}

    def candidate(self, params: Mapping[str, float], *, method: str) -> RescaleFactors:
        """Return the factors that parameters stand for."""
        values = [params[lambda_name(pair)] for pair in range(len(self.template.values))]
        return self.template.with_values(values, method=method).with_temperature(params[TEMPERATURE])


class CoordinateSpace(MonotoneSpace):
    """The same space with the coordinates themselves as Optuna parameters: for samplers that draw them one by one."""

    def distributions(self) -> dict[str, BaseDistribution]:
        """Return the Optuna parameters of a candidate: its coordinates, and the temperature where it is free."""
        largest = self.largest_coordinate
        names = [_coordinate_name(number) for number in range(self.parametrization.num_coordinates)]
        coordinates: dict[str, BaseDistribution] = {name: FloatDistribution(0.0, largest) for name in names}
        temperature = {TEMPERATURE: FloatDistribution(*self.temperatures)} if self.is_temperature_free else {}
        return {**coordinates, **temperature}

    def to_params(self, factors: RescaleFactors) -> dict[str, float]:
        """Return factors, or those nearest to them, as values of `distributions`."""
        found = zip(self.distributions().items(), self.point(factors), strict=True)
        return {
            name: _cut(value, distribution.low, distribution.high)
            for (name, distribution), value in found
            if isinstance(distribution, FloatDistribution)
        }

    def candidate(self, params: Mapping[str, float], *, method: str) -> RescaleFactors:
        """Return the factors that parameters stand for."""
        return self.factors_of(np.array([params[name] for name in self.distributions()]), method=method)


def _coordinate_name(number: int) -> str:
    return f"coordinate_{number:02d}"


def _cut(value: float, lowest: float, highest: float) -> float:
    # rounded before it is cut: a bound such as 32 / 3 rounds to what lies outside
    return min(max(round(float(value), DIGITS), lowest), highest)
