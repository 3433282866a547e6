"""Coordinates in which every point is a list of monotone factors: log lambda = matrix @ coordinates squared."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.interpolate import BSpline
from scipy.optimize import nnls

Vector = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float64]

DEGREE = 3
"""Degree of the splines."""
FEWEST_KNOTS = 4
"""A cubic spline has no fewer."""


@dataclass(frozen=True, eq=False)
class Parametrization:
    """Factors of all pairs from free coordinates.

    The square makes every coordinate's part of log lambda at least 0, and the matrix adds only parts that do not fall
    from one pair to the next; so any coordinates give factors from 1 upwards that do not decrease. There is no
    constraint left for an optimiser to keep.
    """

    matrix: Matrix
    """Shape (num_pairs, num_coordinates); nothing below 0, no column falls."""

    def __post_init__(self) -> None:
        rises = np.diff(self.matrix, axis=0, prepend=0.0)
        assert rises.min() >= -1e-12, "a column that falls could give factors that do"

    @property
    def num_coordinates(self) -> int:
        """Coordinates of a point."""
        return int(self.matrix.shape[1])

    def values(self, coordinates: Vector) -> list[float]:
        """Return the factors of all pairs, shape (num_pairs,), fast pairs first.

        Args:
            coordinates: Shape (num_coordinates,); their signs do not matter.
        """
        values: list[float] = np.exp(self.matrix @ coordinates**2).tolist()
        return values

    def coordinates(self, values: Sequence[float]) -> Vector:
        """Return the coordinates of factors, or of those nearest to them (least squares of log lambda).

        Args:
            values: Factors of all pairs; what is below 1 or decreases is raised first.

        Returns:
            At least 0, shape (num_coordinates,).
        """
        logs = np.log(np.maximum.accumulate(np.maximum(values, 1.0)))
        squares, _ = nnls(self.matrix, logs)
        roots: Vector = np.sqrt(squares)
        return roots

    def gradient(self, coordinates: Vector, by_log_lambda: Vector) -> Vector:
        """Return a loss's gradient by the coordinates.

        Args:
            coordinates: Where, shape (num_coordinates,).
            by_log_lambda: The loss's gradient by log lambda there, shape (num_pairs,).
        """
        gradient: Vector = 2.0 * coordinates * (self.matrix.T @ by_log_lambda)
        return gradient


def all_pairs(num_pairs: int) -> Parametrization:
    """Return the parametrization whose coordinates are the roots of the increments of log lambda, pair by pair.

    Args:
        num_pairs: Frequency pairs of the model.
    """
    return Parametrization(np.tril(np.ones((num_pairs, num_pairs))))


def from_critical_dim(num_pairs: int, critical_dim: int) -> Parametrization:
    """Return the paper's law: pairs from the critical dimension up are free, those below follow lambda_c^(i/c).

    Args:
        num_pairs: Frequency pairs of the model.
        critical_dim: First free pair c, from 1.

    Source: LongRoPE2, arXiv:2502.20082, section 3.3.
    """
    matrix = np.tril(np.ones((num_pairs, num_pairs)))[:, critical_dim:]
    matrix[:critical_dim, 0] = np.arange(critical_dim) / critical_dim
    return Parametrization(matrix)


def spline(num_pairs: int, num_knots: int) -> Parametrization:
    """Return log lambda as a monotone cubic spline over the pair index, so that many pairs need few coordinates.

    Its columns are I-splines: sums of B-splines from one on, each of which rises from 0 to 1 within a few knots. The
    knots lie evenly over the pairs. The I-spline that is 1 everywhere is left out, so that the fastest pair keeps 1.

    Args:
        num_pairs: Frequency pairs of the model.
        num_knots: Knots, and coordinates; at least 4, at most the pairs.

    Source: J. O. Ramsay, Monotone Regression Splines in Action, Statistical Science 3(4), 1988.
    """
    last = num_pairs - 1
    inner = np.linspace(0, last, num_knots + 2 - DEGREE)
    knots = np.concatenate([[0.0] * DEGREE, inner, [float(last)] * DEGREE])
    b_splines = BSpline.design_matrix(np.arange(num_pairs, dtype=float), knots, DEGREE).toarray()
    i_splines = np.cumsum(b_splines[:, ::-1], axis=1)[:, ::-1]
    return Parametrization(np.clip(i_splines[:, 1:], 0.0, 1.0))
