"""LongRoPE2: free factors from the critical dimension upward, a new base below it."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rope.critical_dimension import theoretical_critical_dim
from rope.factors import RescaleFactors
from rope.frequencies import factors_of_new_base
from rope.geometry import check_critical_dim
from rope.identity import none_factors


def longrope2_factors(
    rotary_dim: int,
    base: float,
    *,
    original_length: int,
    target_length: int,
    critical_dim: int | None = None,
    right_values: Sequence[float] | NDArray[np.float64] | None = None,
) -> RescaleFactors:
    """Return LongRoPE2's factors for one critical dimension and the factors from it upward; it searches neither.

    With both left to their defaults it is the paper's method before any search: the smallest factors of its bound,
    eq. 10. The attention temperature is not applied; see `temperature.longrope_temperature`.

    Args:
        rotary_dim: Rotated dimensions per head; even.
        base: RoPE base; above 1.
        original_length: Pre-training window, tokens.
        target_length: Window to reach, tokens; at least original_length.
        critical_dim: Frequency pair, from 0, from which on the factors are free; None for the theoretical one.
        right_values: Factors, shape (rotary_dim / 2 - critical_dim,), above 0; None for the scale everywhere.

    Returns:
        Factors, shape (rotary_dim / 2,), with their critical dimension.

    Raises:
        ValueError: rotary_dim is odd or below 2, base is not above 1, the target is below the original, critical_dim
            names no pair, or right_values has another length or an entry not above 0.

    Example:
        From pair 2 of 4 on the factor is 4, below it 4^(i / 2).

        >>> longrope2_factors(8, 10_000.0, original_length=512, target_length=2048, critical_dim=2).values
        (1.0, 2.0, 4.0, 4.0)

    Source: LongRoPE2, arXiv:2502.20082, algorithm 2 and eq. 10.
    """
    unscaled = none_factors(rotary_dim, base, original_length=original_length, target_length=target_length)
    if critical_dim is None:
        critical_dim = theoretical_critical_dim(rotary_dim, base, original_length)
    check_critical_dim(critical_dim, rotary_dim)
    num_right = rotary_dim // 2 - critical_dim
    right_values = [unscaled.scale] * num_right if right_values is None else right_values
    if len(right_values) != num_right:
        raise ValueError(
            f"right_values must have {num_right} entries (rotary_dim {rotary_dim} / 2 - critical_dim {critical_dim}), "
            f"got {len(right_values)}. Give one for each pair from the critical dimension upward."
        )
    values = fill_below_critical_dim(right_values, critical_dim)
    return unscaled.with_values(values, method="longrope2", critical_dim=critical_dim)


def fill_below_critical_dim(
    right_values: Sequence[float] | NDArray[np.float64], critical_dim: int
) -> NDArray[np.float64]:
    """Return the factors of all pairs from those at and above the critical dimension.

    Below it stands the one change of base that gives the critical dimension its factor, lambda_rcd^(i / rcd), so the
    whole is continuous there, and monotone if the right part is monotone and at least 1.

    Args:
        right_values: Factors from the critical dimension upward, at least one, above 0.
        critical_dim: Frequency pair, from 0, to which right_values[0] belongs.

    Returns:
        Factors, shape (critical_dim + len(right_values),), float64; the first is 1 unless critical_dim is 0.

    Example:
        >>> fill_below_critical_dim([4.0, 5.0], 2).tolist()
        [1.0, 2.0, 4.0, 5.0]

    Source: LongRoPE2, arXiv:2502.20082, algorithm 2, lines 7 and 8.
    """
    left_values = factors_of_new_base(critical_dim, right_values[0], critical_dim)  # lines 7 and 8
    return np.concatenate([left_values, right_values])
