"""LongRoPE: factors of their own for every pair, and first tokens that stay; here the point its search starts from."""

from rope.factors import RescaleFactors
from rope.identity import none_factors
from rope.yarn import BETA_FAST, BETA_SLOW, yarn_ramp

NUM_START_TOKENS_SEARCHED = (0, 1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 64, 128, 256)
"""The values of n-hat that LongRoPE's search tries; source: arXiv:2402.13753."""


def longrope_factors(
    rotary_dim: int,
    base: float,
    *,
    original_length: int,
    target_length: int,
    num_start_tokens: int = 0,
    beta_fast: float = BETA_FAST,
    beta_slow: float = BETA_SLOW,
) -> RescaleFactors:
    """Return the factors that LongRoPE's published search starts from: YaRN's ramp over the factors themselves.

    No search is made here, and this is not YaRN, which blends inverse frequencies: half-way up the ramp at scale 16
    this gives 8.5 and YaRN 1.88. The attention temperature is not applied; see `temperature.longrope_temperature`.

    Args:
        rotary_dim: Rotated dimensions per head; even.
        base: RoPE base; above 1.
        original_length: Pre-training window, tokens.
        target_length: Window to reach, tokens; at least original_length.
        num_start_tokens: Positions that keep their original rotation, the paper's n-hat; at least 0.
        beta_fast, beta_slow: Rotations inside the window at the two ends of the ramp.

    Returns:
        Factors, shape (rotary_dim / 2,), non-decreasing, in [1, scale].

    Raises:
        ValueError: rotary_dim is odd or below 2, base is not above 1, the target is below the original, beta_slow is
            not above 0, beta_fast not above beta_slow or num_start_tokens negative.

    Example:
        LLaMA2-7B at 16x: the ramp runs from pair 20 to 46, and 1 + 15 * 10/26 = 6.769.

        >>> round(longrope_factors(128, 10_000.0, original_length=4096, target_length=65_536).values[30], 3)
        6.769

    Source: LongRoPE, arXiv:2402.13753, eq. 3; the start is the published code's, not the paper's.
    """
    unscaled = none_factors(rotary_dim, base, original_length=original_length, target_length=target_length)
    ramp = yarn_ramp(rotary_dim, base, original_length, beta_fast, beta_slow)
    values = 1.0 + (unscaled.scale - 1.0) * ramp
    return unscaled.with_values(values, method="longrope", num_start_tokens=num_start_tokens)
