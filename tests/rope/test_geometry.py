"""What no rotation can be is refused in one line."""

import re
from typing import Any

import numpy as np
import pytest

from rope.geometry import (
    check_critical_dim,
    check_lengths,
    check_number,
    check_rotary,
    check_whole_number,
    shown,
)


@pytest.mark.parametrize(
    ("rotary_dim", "base", "message"),
    [
        (
            63,
            1e4,
            "rotary_dim must be even (dimensions rotate in pairs), got 63. Give the rotated dimensions of one head.",
        ),
        (0, 1e4, "rotary_dim must be a whole number of at least 2, got 0. Check its origin."),
        (64.0, 1e4, "rotary_dim must be a whole number of at least 2, got 64.0. Check its origin."),
        (64, 1.0, "base must be a finite number above 1, got 1.0. Check its origin."),
        (64, float("nan"), "base must be a finite number above 1, got nan. Check its origin."),
        (64, None, "base must be a finite number above 1, got None. Check its origin."),
    ],
)
def test_a_rotation_that_cannot_be_is_refused(rotary_dim: Any, base: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_rotary(rotary_dim, base)


def test_a_target_below_the_original_is_refused() -> None:
    message = (
        "target_length must be at least original_length 8192, got 4096. "
        "Ask for a longer target, or check the original length."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_lengths(8192, 4096)


def test_a_critical_dimension_outside_the_pairs_is_refused() -> None:
    message = "critical_dim must be at most 31 (rotary_dim 64 / 2 - 1), got 32. It counts frequency pairs from 0."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_critical_dim(32, 64)


@pytest.mark.parametrize("value", [True, "1", None, 1.5, np.float64(2.0), 0])
def test_only_whole_numbers_are_whole_numbers(value: object) -> None:
    with pytest.raises(ValueError, match=r"^count must be a whole number of at least 1, got "):
        check_whole_number("count", value, at_least=1)


@pytest.mark.parametrize("value", [True, "1", None, [1.0], float("inf"), float("nan"), 10**400, 0.0, -1])
def test_only_finite_numbers_above_the_limit_are_numbers(value: object) -> None:
    with pytest.raises(ValueError, match=r"^share must be a finite number above 0, got "):
        check_number("share", value, above=0.0)


@pytest.mark.parametrize("value", [1, 1.5, np.float32(0.5), np.int64(3), 5e-324])
def test_numbers_of_python_and_numpy_pass(value: object) -> None:
    check_number("share", value, above=0.0)


def test_what_came_is_shown_on_one_short_line() -> None:
    assert shown(np.float64(0.5)) == "0.5"
    assert shown("two\nlines") == r"'two\nlines'"
    assert len(shown("x" * 1000)) < 40
