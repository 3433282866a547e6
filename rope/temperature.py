"""Attention temperature: what cos and sin are multiplied by in the long window. Always a choice, never implied.

A factor t on cos and sin multiplies every attention logit by t^2. LongRoPE2's paper mentions none, its code has
LongRoPE's.
"""

import math

from rope.geometry import check_number, check_whole_number, shown

TEMPERATURE_CHOICES = ("none", "longrope", "yarn")
"""The named choices; any number above 0 is one too."""


def longrope_temperature(scale: float, original_length: int) -> float:
    """Return LongRoPE's attention temperature, sqrt(1 + ln s / ln L).

    Args:
        scale: target_length / original_length; at least 1.
        original_length: Pre-training window L, tokens; at least 2.

    Returns:
        Factor on cos and sin; at least 1, and 1 at scale 1.

    Raises:
        ValueError: scale is below 1 or original_length below 2.

    Example:
        LLaMA3-8B from 8k to 128k, `attention_factor` in the published configuration.

        >>> round(longrope_temperature(16.0, 8192), 6)
        1.143544

    Source: LongRoPE's published code, microsoft/LongRoPE, policy "su"; LongRoPE2's paper does not mention it.
    """
    _check_scale(scale)
    check_whole_number("original_length", original_length, at_least=2)
    return math.sqrt(1.0 + math.log(scale) / math.log(original_length))


def yarn_temperature(scale: float) -> float:
    """Return YaRN's attention temperature, 0.1 ln s + 1.

    Args:
        scale: target_length / original_length; at least 1.

    Returns:
        Factor on cos and sin; at least 1, and 1 at scale 1.

    Raises:
        ValueError: scale is below 1.

    Example:
        >>> round(yarn_temperature(16.0), 5)
        1.27726

    Source: YaRN, arXiv:2309.00071, section 3.4 (there sqrt(1 / t)).
    """
    _check_scale(scale)
    return 0.1 * math.log(scale) + 1.0


def attention_temperature(choice: str | float, *, scale: float, original_length: int) -> float:
    """Return the attention temperature that a choice means.

    Args:
        choice: "none", "longrope", "yarn", or a number above 0, which may be written as a text.
        scale: target_length / original_length; at least 1.
        original_length: Pre-training window, tokens.

    Returns:
        Factor on cos and sin; above 0.

    Raises:
        ValueError: choice is neither a name nor a finite number above 0, or scale or original_length is too small.

    Example:
        >>> attention_temperature("1.25", scale=4.0, original_length=512)
        1.25
    """
    if choice == "none":
        return 1.0
    if choice == "longrope":
        return longrope_temperature(scale, original_length)
    if choice == "yarn":
        return yarn_temperature(scale)
    number = _number(choice)
    check_number("attention temperature", number, above=0.0)
    return number


def _number(choice: str | float) -> float:
    try:
        return float(choice)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"attention temperature must be one of {', '.join(TEMPERATURE_CHOICES)} or a number above 0, "
            f"got {shown(choice)}. Choose one of them."
        ) from error


def _check_scale(scale: float) -> None:
    check_number("scale", scale, above=0.0)
    if scale < 1.0:
        raise ValueError(f"scale must be at least 1, got {scale}. It is target length / original length.")
