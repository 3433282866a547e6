"""Inverse frequencies, periods in tokens, rotations inside a window, and what changes of frequency mean as factors."""

import numpy as np
from numpy.typing import NDArray

from rope.factors import RescaleFactors
from rope.geometry import check_rotary


def inverse_frequencies(rotary_dim: int, base: float) -> NDArray[np.float64]:
    """Return the angle, in radians per token, by which each frequency pair turns in the unscaled model.

    Args:
        rotary_dim: Rotated dimensions per head; even.
        base: RoPE base; above 1.

    Returns:
        Shape (rotary_dim / 2,), float64, decreasing from 1.

    Raises:
        ValueError: rotary_dim is odd or below 2, or base is not above 1.

    Example:
        >>> inverse_frequencies(4, 10_000.0).tolist()
        [1.0, 0.01]

    Source: RoFormer, arXiv:2104.09864, section 3.2.2.
    """
    check_rotary(rotary_dim, base)
    return 1.0 / base ** (np.arange(0, rotary_dim, 2) / rotary_dim)


def rescaled_inverse_frequencies(factors: RescaleFactors) -> NDArray[np.float64]:
    """Return the angle, in radians per token, by which each frequency pair turns with the factors installed.

    Attention temperature and start tokens are not in it: they are no matter of frequency.

    Args:
        factors: Rescale factors with their model.

    Returns:
        Shape (rotary_dim / 2,), float64; bit for bit `inverse_frequencies` where a factor is 1.

    Example:
        >>> rescaled_inverse_frequencies(RescaleFactors(values=(1.0, 4.0), rotary_dim=4, base=10_000.0,
        ...                              original_length=256, target_length=1024, method="published")).tolist()
        [1.0, 0.0025]

    Source: LongRoPE2, arXiv:2502.20082, eq. 8.
    """
    return inverse_frequencies(factors.rotary_dim, factors.base) / np.array(factors.values, dtype=np.float64)  # eq. 8


def periods(rotary_dim: int, base: float) -> NDArray[np.float64]:
    """Return the wavelength of each frequency pair of the unscaled model, in tokens.

    Args:
        rotary_dim: Rotated dimensions per head; even.
        base: RoPE base; above 1.

    Returns:
        Shape (rotary_dim / 2,), float64, increasing from 2 pi.

    Raises:
        ValueError: rotary_dim is odd or below 2, or base is not above 1.

    Example:
        Phi3-mini; the paper calls these its 8th and 48th dimension, "24" and "51861".

        >>> periods(96, 10_000.0)[[7, 47]].round(1).tolist()
        [24.1, 51861.7]

    Source: LongRoPE2, arXiv:2502.20082, eq. 6.
    """
    return 2.0 * np.pi / inverse_frequencies(rotary_dim, base)  # eq. 6


def rotations(rotary_dim: int, base: float, length: int) -> NDArray[np.float64]:
    """Return how often each frequency pair of the unscaled model turns inside a window.

    Args:
        rotary_dim: Rotated dimensions per head; even.
        base: RoPE base; above 1.
        length: The window, tokens.

    Returns:
        Shape (rotary_dim / 2,), float64, decreasing from length / 2 pi.

    Raises:
        ValueError: rotary_dim is odd or below 2, or base is not above 1.

    Example:
        100 turns in 628 tokens, and a hundredth of that.

        >>> rotations(4, 10_000.0, 628).round(2).tolist()
        [99.95, 1.0]

    Source: YaRN, arXiv:2309.00071, section 3.2.
    """
    return length / periods(rotary_dim, base)


def factors_of_new_base(num_pairs: int, factor: float, pair: float) -> NDArray[np.float64]:
    """Return the factors of a change of base, told by the factor that it gives to one pair.

    A change from base to base' multiplies the wavelength of pair i by (base' / base)^(2i/d). So one pair and its
    factor tell them all, whatever the base: base' = base * factor^(d / (2 pair)).

    Args:
        num_pairs: Number of factors wanted.
        factor: What the pair gets; above 0.
        pair: Index of the pair, from 0; above 0, may lie between two pairs or beyond the last.

    Returns:
        Shape (num_pairs,), float64; the first is 1, monotone.

    Example:
        >>> factors_of_new_base(4, 8.0, 3.0).round(12).tolist()
        [1.0, 2.0, 4.0, 8.0]
    """
    return np.float64(factor) ** (np.arange(num_pairs) / pair)


def factors_of_kept_share(kept: NDArray[np.float64], scale: float) -> NDArray[np.float64]:
    """Return the factors of pairs that keep a share of their frequency and have the rest divided by the scale.

    A blend of inverse frequencies, kept * inv_freq + (1 - kept) * inv_freq / scale, and not of factors.

    Args:
        kept: Share of each pair, in [0, 1].
        scale: What divides the rest; above 0.

    Returns:
        Shape of `kept`, float64, between 1 (all kept) and scale (none), both met exactly.

    Example:
        Half of a frequency and half of a quarter of it are 5/8 of it.

        >>> factors_of_kept_share(np.array([1.0, 0.5, 0.0]), 4.0).tolist()
        [1.0, 1.6, 4.0]
    """
    return scale / (1.0 + (scale - 1.0) * kept)
