"""Position Interpolation: every wavelength grows by the scale."""

from rope.factors import RescaleFactors
from rope.identity import none_factors


def linear_factors(rotary_dim: int, base: float, *, original_length: int, target_length: int) -> RescaleFactors:
    """Return Position Interpolation's factors: the scale for every pair.

    Args:
        rotary_dim: Rotated dimensions per head; even.
        base: RoPE base; above 1.
        original_length: Pre-training window, tokens.
        target_length: Window to reach, tokens; at least original_length.

    Returns:
        Factors, shape (rotary_dim / 2,), all equal to scale.

    Raises:
        ValueError: rotary_dim is odd or below 2, base is not above 1, or the target is below the original.

    Example:
        LLaMA from 2048 to 8192 tokens, the paper's first.

        >>> set(linear_factors(128, 10_000.0, original_length=2048, target_length=8192).values)
        {4.0}

    Source: Position Interpolation, arXiv:2306.15595, f'(x, m) = f(x, m L / L').
    """
    unscaled = none_factors(rotary_dim, base, original_length=original_length, target_length=target_length)
    return unscaled.with_values([unscaled.scale] * (rotary_dim // 2), method="linear")
