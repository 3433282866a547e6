"""Adjusted base frequency: a fixed larger base, whatever the target length."""

from rope.factors import RescaleFactors
from rope.frequencies import factors_of_new_base
from rope.geometry import check_number
from rope.identity import none_factors

BASE_GROWTH = 50.0
"""The paper went from 10 000 to 500 000; other bases grow by the same ratio unless told."""


def abf_factors(
    rotary_dim: int, base: float, *, original_length: int, target_length: int, new_base: float | None = None
) -> RescaleFactors:
    """Return the factors of another base; the target length does not enter, so scale 1 is no exception.

    Args:
        rotary_dim: Rotated dimensions per head; even.
        base: RoPE base; above 1.
        original_length: Pre-training window, tokens.
        target_length: Window to reach, tokens; at least original_length.
        new_base: The base to change to; above 1; None for 50 * base, which is the paper's 500 000 for 10 000.

    Returns:
        Factors, shape (rotary_dim / 2,), (new_base / base)^(2i / d), from 1.

    Raises:
        ValueError: rotary_dim is odd or below 2, a base is not above 1, or the target is below the original.

    Example:
        Half of 64 pairs up, the factor is the root of 50.

        >>> round(abf_factors(128, 10_000.0, original_length=4096, target_length=32_768).values[32], 4)
        7.0711

    Source: Effective Long-Context Scaling, arXiv:2309.16039.
    """
    unscaled = none_factors(rotary_dim, base, original_length=original_length, target_length=target_length)
    new_base = BASE_GROWTH * base if new_base is None else new_base
    check_number("new_base", new_base, above=1.0)
    num_pairs = rotary_dim // 2
    return unscaled.with_values(factors_of_new_base(num_pairs, new_base / base, num_pairs), method="abf")
