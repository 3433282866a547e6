"""The power law of context: how the loss falls as a model sees more tokens before the one it predicts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares, nnls
from scipy.stats import t as student_t

Array = npt.NDArray[np.float64]

MIN_POINTS = 4
"""Distinct context lengths that a fit of three parameters needs, with one left over for their uncertainty."""
_SMALLEST_BETA, _LARGEST_BETA = 1e-3, 20.0  # a fit that ends there is determined by nothing but these
_EXPONENTS = np.geomspace(0.01, 10.0, 61)  # where a start is looked for
_LARGEST_LOG = 700.0  # of what a float can hold
_LARGEST_CONDITION = 1e8  # of a Jacobian whose errors can be told from rounding


class Estimate(NamedTuple):
    """A fitted parameter and its confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class PowerLaw:
    """L(c) = (alpha / c)^beta + gamma, fitted to losses in nats per token."""

    alpha: Estimate
    """Context at which the loss is 1 nat above `gamma`, tokens."""
    beta: Estimate
    """Exponent: twice the context leaves 2^-beta of what can be reduced."""
    gamma: Estimate
    """Loss that no context takes away, nats per token."""
    confidence: float
    """Share of such intervals that hold the true value, each parameter by itself."""
    residual: float
    """Root of the residual sum of squares over the degrees of freedom, nats per token."""
    num_points: int
    """Points fitted."""

    def loss(self, context: float) -> float:
        """Return the fitted loss, nats per token.

        Args:
            context: Tokens seen; above 0.
        """
        return float((self.alpha.value / context) ** self.beta.value + self.gamma.value)


def fit_power_law(contexts: Sequence[float], losses: Sequence[float], *, confidence: float = 0.95) -> PowerLaw:
    """Fit the power law of context by least squares, all points with the same weight.

    The three parameters are kept positive. Intervals are those of the linearised model with Student's t for n - 3
    degrees of freedom: of the logarithm for alpha and beta, so that they are positive too, of gamma itself cut off at
    0. They take errors of the points to be independent and of one size, which losses on the same text are not quite:
    then they are too narrow. Points that do not determine the law give intervals from 0 to infinity; beta is looked
    for between 0.001 and 20.

    Args:
        contexts: Tokens seen, above 0; at least 4 distinct ones.
        losses: Mean loss at each, nats per token.
        confidence: Of the intervals, between 0 and 1.

    Returns:
        The parameters with their intervals.

    Raises:
        ValueError: points are too few, not finite or out of range, the losses do not fall with the context, or
            `confidence` is out of range.

    Source: Effective Long-Context Scaling of Foundation Models, arXiv:2309.16039, section on the scaling of the loss
        with context.
    """
    c, loss = _checked(contexts, losses, confidence)
    log_c = np.log(c) - np.log(c).mean()
    start = _start(log_c, loss)
    # In the loss above gamma at the middle context instead of alpha: the two hardly depend on each other
    fit = least_squares(
        lambda p: np.exp(p[0] - np.exp(p[1]) * log_c) + p[2] - loss,
        start,
        jac=lambda p: _jacobian(p, log_c),
        bounds=([-np.inf, np.log(_SMALLEST_BETA), 0.0], [np.inf, np.log(_LARGEST_BETA), np.inf]),
        x_scale="jac",
        ftol=1e-15,
        xtol=1e-15,
        gtol=1e-15,
        max_nfev=1_000,
    )
    return _law(fit.x, fit.fun, np.log(c), confidence)


def _checked(contexts: Sequence[float], losses: Sequence[float], confidence: float) -> tuple[Array, Array]:
    c, loss = np.array(contexts, dtype=np.float64), np.array(losses, dtype=np.float64)
    if c.ndim != 1 or c.shape != loss.shape:
        raise ValueError(
            f"a power law must have one loss for each context, got {c.size} contexts and {loss.size} losses. Give both."
        )
    if not (np.isfinite(c).all() and np.isfinite(loss).all() and (c > 0).all()):
        raise ValueError("a power law must have finite losses at contexts above 0, got others. Leave those points out.")
    num_distinct = len(np.unique(c))
    if num_distinct < MIN_POINTS:
        raise ValueError(
            f"a power law must have at least {MIN_POINTS} distinct contexts, got {num_distinct}. Measure more lengths."
        )
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}. Give a share such as 0.95.")
    return c, loss


def _start(log_c: Array, loss: Array) -> Array:
    """Return the best of some exponents, with the reducible loss and gamma that suit it."""
    best, best_error = None, np.inf
    for exponent in _EXPONENTS:
        (reducible, gamma), error = nnls(np.stack([np.exp(-exponent * log_c), np.ones_like(log_c)], axis=1), loss)
        if reducible > 0 and error < best_error:
            best, best_error = np.array([np.log(reducible), np.log(exponent), max(gamma, 1e-9)]), error
    flat_error = float(np.linalg.norm(loss - max(float(loss.mean()), 0.0)))
    if best is None or not best_error < flat_error:
        raise ValueError("losses must fall as the context grows, got none that do. Is the model's window shorter?")
    return best


def _jacobian(p: Array, log_c: Array) -> Array:
    beta = np.exp(p[1])
    reducible = np.exp(p[0] - beta * log_c)
    return np.stack([reducible, -beta * log_c * reducible, np.ones_like(log_c)], axis=1)


def _law(p: Array, residuals: Array, log_contexts: Array, confidence: float) -> PowerLaw:
    """Return the law with intervals from the log of the reducible loss at the middle context, log beta and gamma."""
    middle = float(log_contexts.mean())
    log_reducible, log_beta, gamma = (float(number) for number in p)
    beta = float(np.exp(log_beta))
    log_alpha = middle + log_reducible / beta
    degrees = len(log_contexts) - 3
    variance = float(residuals @ residuals) / degrees
    # log alpha = middle + p0 exp(-p1)
    to_parameters = np.array([[1 / beta, -log_reducible / beta, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    # A residual of exactly 0 must not hide what is undetermined
    errors = np.sqrt(max(variance, np.finfo(np.float64).tiny)) * _sensitivity(
        to_parameters,
        _jacobian(p, log_contexts - middle),
        is_inside=1.01 * _SMALLEST_BETA < beta < 0.99 * _LARGEST_BETA,
    )
    widths = errors * float(student_t.ppf((1 + confidence) / 2, degrees))
    return PowerLaw(
        alpha=_log_estimate(log_alpha, widths[0]),
        beta=_log_estimate(log_beta, widths[1]),
        gamma=Estimate(gamma, max(0.0, gamma - float(widths[2])), gamma + float(widths[2])),
        confidence=confidence,
        residual=float(np.sqrt(variance)),
        num_points=len(log_contexts),
    )


def _sensitivity(to_parameters: Array, jacobian: Array, *, is_inside: bool) -> Array:
    """Return how far each parameter moves with the losses, shape (3,); infinite where they do not determine it."""
    sizes = np.linalg.norm(jacobian, axis=0)
    if not is_inside or not sizes.all() or np.linalg.cond(jacobian / sizes) > _LARGEST_CONDITION:
        return np.full(3, np.inf)
    inverse = np.linalg.pinv(jacobian / sizes) / sizes[:, None]
    moves: Array = np.linalg.norm(to_parameters @ inverse, axis=1)
    return moves


def _log_estimate(log_value: float, width: float) -> Estimate:
    logs = (log_value, log_value - width, log_value + width)
    value, low, high = (float(np.exp(log)) if log < _LARGEST_LOG else float("inf") for log in logs)
    return Estimate(value, low, high)
