"""Llama-3.1's scaling: as YaRN, with the blend over rotations instead of indices."""

import numpy as np

from rope.factors import RescaleFactors
from rope.frequencies import factors_of_kept_share, rotations
from rope.geometry import check_number
from rope.identity import none_factors


def llama3_factors(
    rotary_dim: int,
    base: float,
    *,
    original_length: int,
    target_length: int,
    low_freq_factor: float = 1.0,
    high_freq_factor: float = 4.0,
    factor: float | None = None,
) -> RescaleFactors:
    """Return Llama-3.1's factors: 1 for fast pairs, `factor` for slow ones, a blend of inverse frequencies between.

    Llama 3.1 itself went from 8k to 128k, a scale of 16, with a factor of 8.

    Args:
        rotary_dim: Rotated dimensions per head; even.
        base: RoPE base; above 1.
        original_length: Pre-training window, tokens.
        target_length: Window to reach, tokens; at least original_length.
        low_freq_factor, high_freq_factor: Rotations inside the window at the two ends of the blend.
        factor: What slow pairs get; above 0; None for the scale.

    Returns:
        Factors, shape (rotary_dim / 2,), from 1 to factor, monotone.

    Raises:
        ValueError: rotary_dim is odd or below 2, base is not above 1, the target is below the original,
            low_freq_factor or factor is not above 0, or high_freq_factor not above low_freq_factor.

    Example:
        With base 10 000 and 4 dimensions pair 1 turns 2.5 times in 1571 tokens, half-way from 1 to 4: 1 / (1/2 + 1/8).

        >>> round(llama3_factors(4, 10_000.0, original_length=1571, target_length=6284).values[1], 3)
        1.6

    Source: Llama 3.1, the `llama-models` reference code (`apply_scaling`); the transformers library has it too.
    """
    unscaled = none_factors(rotary_dim, base, original_length=original_length, target_length=target_length)
    factor = unscaled.scale if factor is None else factor
    check_number("factor", factor, above=0.0)
    check_number("low_freq_factor", low_freq_factor, above=0.0)
    check_number("high_freq_factor", high_freq_factor, above=low_freq_factor)
    turns = rotations(rotary_dim, base, original_length)
    kept = np.clip((turns - low_freq_factor) / (high_freq_factor - low_freq_factor), 0.0, 1.0)
    return unscaled.with_values(factors_of_kept_share(kept, factor), method="llama3")
