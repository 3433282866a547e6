"""Critical dimensions against published ones and the periods that define them."""

from collections.abc import Callable
from typing import Any

import pytest

from rope.critical_dimension import (
    critical_dim_candidates,
    even_critical_dim,
    lowest_critical_dim,
    raw_critical_dim,
    theoretical_critical_dim,
)
from rope.frequencies import periods


def test_critical_dimensions_are_the_published_ones(oracle: Callable[[str], Any]) -> None:
    for model, case in oracle("critical_dimensions").items():
        geometry = (case["rotary_dim"], case["base"], case["original_length"])
        # 5e-5: published with four decimals
        assert raw_critical_dim(*geometry) == pytest.approx(case["raw"], abs=5e-5), model
        assert theoretical_critical_dim(*geometry) == case["theoretical"], model
        assert even_critical_dim(*geometry) == case["even"], model
        assert lowest_critical_dim(*geometry) == case["lowest"], model
        assert critical_dim_candidates(*geometry) == range(case["lowest"], case["theoretical"] + 1), model


@pytest.mark.parametrize(
    ("rotary_dim", "base", "length"),
    [(128, 5e5, 8192), (96, 1e4, 2048), (32, 1e4, 256), (64, 1e4, 512), (256, 1e4, 8192)],
)
def test_the_window_lies_between_the_periods_on_either_side(rotary_dim: int, base: float, length: int) -> None:
    period = periods(rotary_dim, base)
    critical_dim = theoretical_critical_dim(rotary_dim, base, length)
    assert period[critical_dim - 1] < length <= period[critical_dim]
    lowest = lowest_critical_dim(rotary_dim, base, length)
    assert period[lowest - 1] < length / 10 <= period[lowest]


def test_the_last_pair_is_critical_where_every_pair_turns() -> None:
    # base 100, 16 dimensions: the slowest period is 2 pi * 100^(7/8) = 353 tokens
    assert raw_critical_dim(16, 100.0, 100_000) > 8
    assert theoretical_critical_dim(16, 100.0, 100_000) == 7
    assert even_critical_dim(16, 100.0, 100_000) == 14
    assert critical_dim_candidates(16, 100.0, 100_000) == range(7, 8)


def test_the_first_pair_is_critical_where_no_pair_turns() -> None:
    assert raw_critical_dim(16, 1e4, 6) < 0
    assert critical_dim_candidates(16, 1e4, 6) == range(1)


def test_a_short_window_keeps_the_lower_end_at_the_first_pair() -> None:
    # 32 tokens hold five of the fastest periods, ln(32 / 2 pi) / ln(10^4) * 8 = 1.41
    assert critical_dim_candidates(16, 1e4, 32) == range(3)


@pytest.mark.parametrize(
    ("rotary_dim", "base", "length", "num_periods", "message"),
    [
        (15, 1e4, 256, 1.0, r"^rotary_dim must be even \(dimensions rotate in pairs\), got 15\."),
        (16, 1.0, 256, 1.0, r"^base must be a finite number above 1, got 1\.0\."),
        (16, 1e4, 0, 1.0, r"^original_length must be a whole number of at least 1, got 0\."),
        (16, 1e4, 256, 0.0, r"^num_periods must be a finite number above 0, got 0\.0\."),
    ],
)
def test_bad_geometry_is_refused(rotary_dim: int, base: float, length: int, num_periods: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        raw_critical_dim(rotary_dim, base, length, num_periods=num_periods)
