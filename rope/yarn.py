"""YaRN: fast pairs stay, slow ones get the scale, a blend of inverse frequencies between."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rope.critical_dimension import raw_critical_dim
from rope.factors import RescaleFactors
from rope.frequencies import factors_of_kept_share
from rope.geometry import check_number
from rope.identity import none_factors

BETA_FAST = 32.0
"""Rotations inside the window from which on a pair stays as it is."""
BETA_SLOW = 1.0
"""Rotations inside the window up to which a pair gets the scale."""


class YarnRange(NamedTuple):
    """The two ends of YaRN's ramp, indices of frequency pairs from 0."""

    low: int
    """Last pair that stays as it is."""
    high: int
    """First pair that gets the scale; may lie beyond the last pair."""


def yarn_factors(
    rotary_dim: int,
    base: float,
    *,
    original_length: int,
    target_length: int,
    beta_fast: float = BETA_FAST,
    beta_slow: float = BETA_SLOW,
) -> RescaleFactors:
    """Return YaRN's factors: 1 for fast pairs, the scale for slow ones, a blend of inverse frequencies between.

    The blend is one of inverse frequencies: blending the factors gives `longrope_factors`, another method. The
    attention temperature is not applied here; see `temperature.yarn_temperature`.

    Args:
        rotary_dim: Rotated dimensions per head; even.
        base: RoPE base; above 1.
        original_length: Pre-training window, tokens.
        target_length: Window to reach, tokens; at least original_length.
        beta_fast, beta_slow: Rotations inside the window at the two ends of the ramp.

    Returns:
        Factors, shape (rotary_dim / 2,), non-decreasing, in [1, scale].

    Raises:
        ValueError: rotary_dim is odd or below 2, base is not above 1, the target is below the original, beta_slow is
            not above 0 or beta_fast not above beta_slow.

    Example:
        LLaMA2-7B at 16x: the ramp runs from pair 20 to 46, and 1 / (16/26 + 10/26 / 16) = 1.564.

        >>> round(yarn_factors(128, 10_000.0, original_length=4096, target_length=65_536).values[30], 3)
        1.564

    Source: YaRN, arXiv:2309.00071, section 3.2, with the ramp over indices that its code has.
    """
    unscaled = none_factors(rotary_dim, base, original_length=original_length, target_length=target_length)
    ramp = yarn_ramp(rotary_dim, base, original_length, beta_fast, beta_slow)
    return unscaled.with_values(factors_of_kept_share(1.0 - ramp, unscaled.scale), method="yarn")


def yarn_ramp(
    rotary_dim: int, base: float, original_length: int, beta_fast: float = BETA_FAST, beta_slow: float = BETA_SLOW
) -> NDArray[np.float64]:
    """Return how far along YaRN's ramp each pair is.

    The paper's text has a ramp over rotations, its code one over indices, which is the one that everybody runs.

    Args:
        rotary_dim: Rotated dimensions per head; even.
        base: RoPE base; above 1.
        original_length: Pre-training window, tokens.
        beta_fast, beta_slow: Rotations inside the window at the two ends of the ramp.

    Returns:
        Shape (rotary_dim / 2,), float64, non-decreasing, 0 up to the range's low end and 1 from its high end on.

    Raises:
        ValueError: As `yarn_range`.

    Example:
        LLaMA2-7B: pair 30 lies at 10/26.

        >>> round(float(yarn_ramp(128, 10_000.0, 4096)[30]), 4)
        0.3846

    Source: YaRN, arXiv:2309.00071, section 3.2, and its published code.
    """
    low, high = yarn_range(rotary_dim, base, original_length, beta_fast, beta_slow)
    # 0.001: as published where both ends meet; where they cross no pair lies between them
    return np.clip((np.arange(rotary_dim // 2) - low) / max(high - low, 0.001), 0.0, 1.0)


def yarn_range(
    rotary_dim: int, base: float, original_length: int, beta_fast: float = BETA_FAST, beta_slow: float = BETA_SLOW
) -> YarnRange:
    """Return the two ends of YaRN's ramp.

    Args:
        rotary_dim: Rotated dimensions per head; even.
        base: RoPE base; above 1.
        original_length: Pre-training window, tokens.
        beta_fast, beta_slow: Rotations inside the window at the two ends of the ramp.

    Returns:
        Indices of frequency pairs, from 0; `high` is at most rotary_dim - 1, as published, not rotary_dim / 2 - 1.

    Raises:
        ValueError: rotary_dim is odd or below 2, base is not above 1, the length is below 1, beta_slow is not above 0
            or beta_fast not above beta_slow.

    Example:
        LLaMA3-8B.

        >>> yarn_range(128, 500_000.0, 8192)
        YarnRange(low=18, high=35)

    Source: YaRN, arXiv:2309.00071, section 3.2, and its published code.
    """
    check_number("beta_slow", beta_slow, above=0.0)
    check_number("beta_fast", beta_fast, above=beta_slow)
    low = math.floor(raw_critical_dim(rotary_dim, base, original_length, num_periods=beta_fast))
    high = math.ceil(raw_critical_dim(rotary_dim, base, original_length, num_periods=beta_slow))
    return YarnRange(max(low, 0), min(high, rotary_dim - 1))
