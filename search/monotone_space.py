"""Monotone factors of all pairs and the attention temperature, without a critical dimension."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from optuna.distributions import BaseDistribution, FloatDistribution

from rope.factors import RescaleFactors
from search.space import lambda_name

TEMPERATURE = "attention_temperature"
DIGITS = 6
"""Decimal digits that parameters are rounded to, so that a study gives back exactly what was measured."""


@dataclass(frozen=True, kw_only=True)
class MonotoneSpace:
    """Every non-decreasing list of factors from 1 to a bound, with a temperature beside it."""

    template: RescaleFactors
    """Factors of the same model and window; their values do not matter."""
    high: float
    """Largest factor."""
    temperatures: tuple[float, float] = (0.8, 2.0)
    """Smallest and largest attention temperature."""

    def __post_init__(self) -> None:
        if not self.high > 1:
            raise ValueError(f"the largest factor must be above 1, got {self.high:g}. Set cma.high.")

    def distributions(self) -> dict[str, BaseDistribution]:
        """Return the Optuna parameters of a candidate: one factor per pair, and the temperature."""
        lambdas = {lambda_name(pair): FloatDistribution(1.0, self.high) for pair in range(len(self.template.values))}
        return {**lambdas, TEMPERATURE: FloatDistribution(*self.temperatures)}

    def to_params(self, values: Sequence[float], attention_temperature: float) -> dict[str, float]:
        """Return factors and temperature as values of `distributions`, cut to the bounds."""
        lambdas = {lambda_name(pair): _cut(value, 1.0, self.high) for pair, value in enumerate(values)}
        return {**lambdas, TEMPERATURE: _cut(attention_temperature, *self.temperatures)}

    def candidate(self, params: Mapping[str, float], *, method: str) -> RescaleFactors:
        """Return the factors that parameters stand for."""
        values = [params[lambda_name(pair)] for pair in range(len(self.template.values))]
        return self.template.with_values(values, method=method).with_temperature(params[TEMPERATURE])


def _cut(value: float, lowest: float, highest: float) -> float:
    # rounded before it is cut: a bound such as 32 / 3 rounds to what lies outside
    return min(max(round(float(value), DIGITS), lowest), highest)
