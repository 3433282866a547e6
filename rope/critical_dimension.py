"""The critical dimension: the first frequency pair that pre-training never saw turn once, and where to search for it.

Every index here counts frequency pairs from 0, so an index `i` speaks of inv_freq[i]. The paper's eq. 7 counts
dimensions instead, two per pair: `even_critical_dim`. Below the critical dimension every period fits into the
pre-training window. What pre-training really taught reaches less far, so the critical dimension that works best lies
at or below the theoretical one; LongRoPE2 looks for it down to the pair with ten periods in the window.

Where the window is so short or the base so small that a formula leaves the model's pairs, the nearest pair is meant:
pair 0 if not even the fastest turns once, the last pair if all of them do.
"""

import math

from rope.geometry import check_lengths, check_number, check_rotary


def raw_critical_dim(rotary_dim: int, base: float, original_length: int, *, num_periods: float = 1.0) -> float:
    """Return the index, between two pairs, whose period fits `num_periods` times into the window.

    Not rounded and not clamped: negative or above the last pair where no pair has such a period.

    Args:
        rotary_dim: Rotated dimensions per head; even.
        base: RoPE base; above 1.
        original_length: Pre-training window, tokens.
        num_periods: Periods inside the window; above 0.

    Returns:
        Index of a frequency pair, from 0, as a real number.

    Raises:
        ValueError: rotary_dim is odd or below 2, base is not above 1, or a length or num_periods is not above 0.

    Example:
        LLaMA3-8B.

        >>> round(raw_critical_dim(128, 500_000.0, 8192), 4)
        34.9841

    Source: LongRoPE2, arXiv:2502.20082, eq. 7 before rounding.
    """
    check_rotary(rotary_dim, base)
    check_lengths(original_length, original_length)
    check_number("num_periods", num_periods, above=0.0)
    return rotary_dim / 2 * math.log(original_length / (2 * math.pi * num_periods), base)  # eq. 7


def theoretical_critical_dim(rotary_dim: int, base: float, original_length: int) -> int:
    """Return the first pair whose period is at least the window; upper end of the range searched.

    Args:
        rotary_dim: Rotated dimensions per head; even.
        base: RoPE base; above 1.
        original_length: Pre-training window, tokens.

    Returns:
        Index of a frequency pair, from 0, in 0 .. rotary_dim / 2 - 1.

    Raises:
        ValueError: rotary_dim is odd or below 2, base is not above 1, or the length is below 1.

    Example:
        LLaMA3-8B: the period of pair 34 is 6695 tokens, that of pair 35 is 8219.

        >>> theoretical_critical_dim(128, 500_000.0, 8192)
        35

    Source: LongRoPE2, arXiv:2502.20082, half of eq. 7.
    """
    return _nearest_pair(raw_critical_dim(rotary_dim, base, original_length), rotary_dim)


def even_critical_dim(rotary_dim: int, base: float, original_length: int) -> int:
    """Return the theoretical critical dimension as eq. 7 prints it: counted in dimensions, twice the pair's index.

    Args:
        rotary_dim: Rotated dimensions per head; even.
        base: RoPE base; above 1.
        original_length: Pre-training window, tokens.

    Returns:
        Index of a dimension, from 0, even.

    Raises:
        ValueError: rotary_dim is odd or below 2, base is not above 1, or the length is below 1.

    Example:
        Phi3-mini, the paper's own example.

        >>> even_critical_dim(96, 10_000.0, 2048)
        62

    Source: LongRoPE2, arXiv:2502.20082, eq. 7.
    """
    return 2 * theoretical_critical_dim(rotary_dim, base, original_length)


def lowest_critical_dim(rotary_dim: int, base: float, original_length: int) -> int:
    """Return the first pair with at most ten periods in the window; lower end of the range searched.

    Args:
        rotary_dim: Rotated dimensions per head; even.
        base: RoPE base; above 1.
        original_length: Pre-training window, tokens.

    Returns:
        Index of a frequency pair, from 0, in 0 .. rotary_dim / 2 - 1.

    Raises:
        ValueError: rotary_dim is odd or below 2, base is not above 1, or the length is below 1.

    Example:
        LLaMA3-8B.

        >>> lowest_critical_dim(128, 500_000.0, 8192)
        24

    Source: LongRoPE2, arXiv:2502.20082, algorithm 1.
    """
    return _nearest_pair(raw_critical_dim(rotary_dim, base, original_length, num_periods=10.0), rotary_dim)


def critical_dim_candidates(rotary_dim: int, base: float, original_length: int) -> range:
    """Return every critical dimension that LongRoPE2 searches, both ends included; never empty.

    Args:
        rotary_dim: Rotated dimensions per head; even.
        base: RoPE base; above 1.
        original_length: Pre-training window, tokens.

    Returns:
        Indices of frequency pairs, from 0, rising.

    Raises:
        ValueError: rotary_dim is odd or below 2, base is not above 1, or the length is below 1.

    Example:
        Phi3-mini, of which the paper found 25 the best.

        >>> critical_dim_candidates(96, 10_000.0, 2048)
        range(19, 32)

    Source: LongRoPE2, arXiv:2502.20082, algorithm 1.
    """
    lowest = lowest_critical_dim(rotary_dim, base, original_length)
    return range(lowest, theoretical_critical_dim(rotary_dim, base, original_length) + 1)


def _nearest_pair(raw: float, rotary_dim: int) -> int:
    """Round an index up, then into the model's pairs."""
    return min(max(math.ceil(raw), 0), rotary_dim // 2 - 1)
