"""NTK-aware scaling: a larger base, in the three forms that go by this name."""

from rope.critical_dimension import raw_critical_dim
from rope.factors import RescaleFactors
from rope.frequencies import factors_of_new_base
from rope.geometry import check_number, check_whole_number
from rope.identity import none_factors


def ntk_factors(rotary_dim: int, base: float, *, original_length: int, target_length: int) -> RescaleFactors:
    """Return the factors of NTK-aware scaling in its exponent form: the slowest pair gets the scale.

    base' = base * scale^(d / (d - 2)). This is not what LongRoPE2 calls NTK; see `ntk_critical_factors`.

    Args:
        rotary_dim: Rotated dimensions per head; even, at least 4.
        base: RoPE base; above 1.
        original_length: Pre-training window, tokens.
        target_length: Window to reach, tokens; at least original_length.

    Returns:
        Factors, shape (rotary_dim / 2,), from 1 to scale, scale^(2i / (d - 2)).

    Raises:
        ValueError: rotary_dim is odd or below 4, base is not above 1, or the target is below the original.

    Example:
        Of 4 pairs at scale 8 each doubles the one before.

        >>> [round(value, 12) for value in ntk_factors(8, 10_000.0, original_length=1024, target_length=8192).values]
        [1.0, 2.0, 4.0, 8.0]

    Source: NTK-aware scaled RoPE (bloc97, 2023); YaRN, arXiv:2309.00071, section 3.1.
    """
    unscaled = none_factors(rotary_dim, base, original_length=original_length, target_length=target_length)
    return _with_last_factor(unscaled, unscaled.scale, method="ntk")


def ntk_critical_factors(rotary_dim: int, base: float, *, original_length: int, target_length: int) -> RescaleFactors:
    """Return the factors of the LongRoPE2 paper's NTK: the period that was the window becomes the target window.

    base' = base^(log_{L / 2 pi}(L' / 2 pi)), which gives scale^(i / c), c being the critical dimension before rounding.
    The pairs above it get more than the scale, the last of LLaMA3-8B at 16x even 147.

    Args:
        rotary_dim: Rotated dimensions per head; even.
        base: RoPE base; above 1.
        original_length: Pre-training window, tokens; at least 7, so that the fastest pair turns in it.
        target_length: Window to reach, tokens; at least original_length.

    Returns:
        Factors, shape (rotary_dim / 2,), non-decreasing from 1.

    Raises:
        ValueError: rotary_dim is odd or below 2, base is not above 1, the original length is below 7 or the target
            below the original.

    Example:
        LLaMA3-8B from 8k to 128k.

        >>> round(ntk_critical_factors(128, 500_000.0, original_length=8192, target_length=131_072).values[-1], 2)
        147.37

    Source: Liu et al. 2023, arXiv:2310.05209, the NTK of LongRoPE2, arXiv:2502.20082.
    """
    unscaled = none_factors(rotary_dim, base, original_length=original_length, target_length=target_length)
    critical_dim = raw_critical_dim(rotary_dim, base, original_length)
    if critical_dim <= 0:
        raise ValueError(
            f"original_length must be above 2 pi tokens for the method ntk-critical, got {original_length}. "
            "Give the pre-training window, or take the method ntk."
        )
    values = factors_of_new_base(rotary_dim // 2, unscaled.scale, critical_dim)
    return unscaled.with_values(values, method="ntk-critical")


def dynamic_ntk_factors(
    rotary_dim: int,
    base: float,
    *,
    original_length: int,
    target_length: int,
    factor: float | None = None,
    sequence_length: int | None = None,
) -> RescaleFactors:
    """Return the factors that dynamic NTK has at one sequence length; they do not change while a sequence grows.

    base' = base * (factor * n / L - (factor - 1))^(d / (d - 2)). With a factor of 1 this is `ntk_factors` at n.

    Args:
        rotary_dim: Rotated dimensions per head; even, at least 4.
        base: RoPE base; above 1.
        original_length: Pre-training window L, tokens.
        target_length: Window to reach, tokens; at least original_length.
        factor: The method's own scaling factor; None for the scale.
        sequence_length: Sequence length n, tokens; None for the target length, and never less than the original.

    Returns:
        Factors, shape (rotary_dim / 2,), non-decreasing from 1.

    Raises:
        ValueError: rotary_dim is odd or below 4, base is not above 1, the target is below the original, the factor is
            not above 0 or the sequence length below 1.

    Example:
        At scale 4 the slowest pair gets 4 * 4 - 3.

        >>> round(dynamic_ntk_factors(64, 10_000.0, original_length=2048, target_length=8192).values[-1], 12)
        13.0

    Source: Dynamic NTK (emozilla, 2023), as the transformers library has it; YaRN, arXiv:2309.00071, section 3.3.
    """
    unscaled = none_factors(rotary_dim, base, original_length=original_length, target_length=target_length)
    factor = unscaled.scale if factor is None else factor
    sequence_length = target_length if sequence_length is None else sequence_length
    check_number("factor", factor, above=0.0)
    check_whole_number("sequence_length", sequence_length, at_least=1)
    stretch = factor * max(sequence_length, original_length) / original_length - (factor - 1)
    return _with_last_factor(unscaled, stretch, method="dynamic-ntk")


def _with_last_factor(unscaled: RescaleFactors, factor: float, *, method: str) -> RescaleFactors:
    """Return the factors of base * factor^(d / (d - 2)), which gives `factor` to the last pair."""
    if unscaled.rotary_dim < 4:
        raise ValueError(
            f"rotary_dim must be at least 4 for the method {method}, got {unscaled.rotary_dim}. "
            "A single pair has no slower one: take the method linear."
        )
    num_pairs = unscaled.rotary_dim // 2
    return unscaled.with_values(factors_of_new_base(num_pairs, factor, num_pairs - 1), method=method)
