"""No scaling: the model as it was trained, with which every method is compared and on which every method builds."""

from rope.factors import RescaleFactors


def none_factors(rotary_dim: int, base: float, *, original_length: int, target_length: int) -> RescaleFactors:
    """Return factors that change nothing.

    Args:
        rotary_dim: Rotated dimensions per head; even.
        base: RoPE base; above 1.
        original_length: Pre-training window, tokens.
        target_length: Window to reach, tokens; at least original_length.

    Returns:
        Factors of 1, shape (rotary_dim / 2,).

    Raises:
        ValueError: rotary_dim is odd or below 2, base is not above 1, or the target is below the original.

    Example:
        >>> none_factors(4, 10_000.0, original_length=256, target_length=1024).values
        (1.0, 1.0)
    """
    return RescaleFactors(
        values=(1.0,) * (rotary_dim // 2),
        rotary_dim=rotary_dim,
        base=base,
        original_length=original_length,
        target_length=target_length,
        method="none",
    )
