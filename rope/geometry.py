"""What must hold of the numbers that describe a rotation, each said in one line when it does not."""

import reprlib
import sys

import numpy as np


def check_rotary(rotary_dim: int, base: float) -> None:
    """Refuse a rotation that no model can have.

    Args:
        rotary_dim: Rotated dimensions per head; even, at least 2.
        base: RoPE base; finite, above 1.

    Raises:
        ValueError: rotary_dim is no whole number, below 2 or odd; base is not finite or not above 1.
    """
    check_whole_number("rotary_dim", rotary_dim, at_least=2)
    if rotary_dim % 2:
        raise ValueError(
            f"rotary_dim must be even (dimensions rotate in pairs), got {rotary_dim}. "
            "Give the rotated dimensions of one head."
        )
    check_number("base", base, above=1.0)


def check_lengths(original_length: int, target_length: int) -> None:
    """Refuse windows that do not extend anything; equal ones pass (scale 1).

    Args:
        original_length: Pre-training window, tokens; at least 1.
        target_length: Window to reach, tokens; at least original_length.

    Raises:
        ValueError: A length is no whole number or below 1, or the target is below the original.
    """
    check_whole_number("original_length", original_length, at_least=1)
    check_whole_number("target_length", target_length, at_least=1)
    if target_length < original_length:
        raise ValueError(
            f"target_length must be at least original_length {original_length}, got {target_length}. "
            "Ask for a longer target, or check the original length."
        )


def check_critical_dim(critical_dim: int, rotary_dim: int) -> None:
    """Refuse a critical dimension that names no frequency pair of the model.

    Args:
        critical_dim: Index of a frequency pair, from 0.
        rotary_dim: Rotated dimensions per head.

    Raises:
        ValueError: critical_dim is no whole number or outside 0 .. rotary_dim / 2 - 1.
    """
    check_whole_number("critical_dim", critical_dim, at_least=0)
    if critical_dim >= rotary_dim // 2:
        raise ValueError(
            f"critical_dim must be at most {rotary_dim // 2 - 1} (rotary_dim {rotary_dim} / 2 - 1), "
            f"got {critical_dim}. It counts frequency pairs from 0."
        )


def check_whole_number(name: str, value: object, *, at_least: int) -> None:
    """Refuse anything but a whole number of at least `at_least`; a float is refused even if it is whole.

    Args:
        name: What the number is, as its user wrote it.
        value: What came.
        at_least: Smallest number allowed.

    Raises:
        ValueError: value is of another type, a truth value, or too small.
    """
    plain = _plain(value)
    if isinstance(plain, bool) or not isinstance(plain, int) or plain < at_least:
        raise ValueError(f"{name} must be a whole number of at least {at_least}, got {shown(value)}. Check its origin.")


def check_number(name: str, value: object, *, above: float) -> None:
    """Refuse anything but a finite number above `above`.

    Args:
        name: What the number is, as its user wrote it.
        value: What came.
        above: Largest number that is not allowed.

    Raises:
        ValueError: value is of another type, a truth value, NaN, infinite, or not above `above`.
    """
    plain = _plain(value)
    if isinstance(plain, bool) or not isinstance(plain, int | float) or not above < plain <= sys.float_info.max:
        raise ValueError(f"{name} must be a finite number above {above:g}, got {shown(value)}. Check its origin.")


def shown(value: object) -> str:
    """Return a value as an error message shows it: on one line, cut when long, numbers without their type.

    Args:
        value: What came.

    Returns:
        The text.
    """
    return reprlib.repr(_plain(value))


def _plain(value: object) -> object:
    """Return Python's own number in place of a numpy scalar, anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value
