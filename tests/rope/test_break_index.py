"""The critical dimension that a list was made with, read from the list alone."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rope.abf import abf_factors
from rope.break_index import break_index
from rope.identity import none_factors
from rope.linear import linear_factors
from rope.llama3 import llama3_factors
from rope.longrope import longrope_factors
from rope.longrope2 import longrope2_factors
from rope.methods import Method
from rope.ntk import dynamic_ntk_factors, ntk_critical_factors, ntk_factors
from rope.yarn import yarn_factors

WINDOW, TARGET = 8192, 131_072


def test_the_published_llama3_list_breaks_where_its_authors_say(oracle: Callable[[str], Any]) -> None:
    published = oracle("longrope2_llama3_8b")
    assert break_index(published["long_factor"]) == published["critical_dim"] == 33


def test_published_lists_of_longrope_show_none(oracle: Callable[[str], Any]) -> None:
    phi3 = oracle("longrope_phi3_mini")
    assert break_index(phi3["long_factor"]) is None
    assert break_index(phi3["short_factor"]) is None
    assert break_index(oracle("longrope_mistral_2048k")) is None


def test_a_list_made_by_hand_breaks_at_its_corner() -> None:
    # Each is the one before times 3 up to pair 4, then times 1.1
    values = [3.0**pair for pair in range(5)] + [81.0 * 1.1**step for step in range(1, 4)]
    assert break_index(values) == 4


@pytest.mark.parametrize("critical_dim", range(3, 63))
def test_every_critical_dimension_of_the_formula_is_found(critical_dim: int) -> None:
    assert (
        break_index(
            longrope2_factors(128, 5e5, critical_dim=critical_dim, original_length=WINDOW, target_length=TARGET).values
        )
        == critical_dim
    )


def test_the_factors_above_the_break_may_be_anything() -> None:
    right = [21.81, 30.0, 5.0, 0.5, 100.0]
    assert (
        break_index(
            longrope2_factors(
                64, 1e4, critical_dim=27, right_values=right, original_length=WINDOW, target_length=TARGET
            ).values
        )
        == 27
    )


@pytest.mark.parametrize(
    "formula",
    [
        none_factors,
        linear_factors,
        ntk_factors,
        ntk_critical_factors,
        dynamic_ntk_factors,
        abf_factors,
        yarn_factors,
        llama3_factors,
        longrope_factors,
    ],
)
def test_formulas_without_a_critical_dimension_show_none(formula: Method) -> None:
    for rotary_dim, base in ((128, 5e5), (96, 1e4), (32, 500.0)):
        assert break_index(formula(rotary_dim, base, original_length=WINDOW, target_length=TARGET).values) is None


def test_a_line_to_the_last_pair_looks_like_a_change_of_base() -> None:
    assert (
        break_index(longrope2_factors(16, 1e4, critical_dim=7, original_length=WINDOW, target_length=TARGET).values)
        is None
    )


def test_a_line_of_one_pair_between_is_taken_for_an_accident() -> None:
    assert break_index([1.0, 1.1, 1.21, 1.3, 1.4]) is None
    assert break_index([1.0, 1.1, 1.21, 1.331, 1.4]) == 3


@pytest.mark.parametrize("critical_dim", [5, 24, 33, 50])
def test_lists_in_float32_and_of_six_decimals_keep_their_break(critical_dim: int) -> None:
    values = longrope2_factors(128, 5e5, critical_dim=critical_dim, original_length=WINDOW, target_length=TARGET).values
    assert break_index(np.array(values, dtype=np.float32).tolist()) == critical_dim
    assert break_index([round(value, 6) for value in values]) == critical_dim


def test_a_list_of_two_decimals_shows_none_unless_told_how_far_it_may_be_off(oracle: Callable[[str], Any]) -> None:
    rounded = [round(value, 2) for value in oracle("longrope2_llama3_8b")["long_factor"]]
    assert break_index(rounded) is None
    # Half a unit of 0.01 for the pair and for the critical one, relative to factors from 1
    assert break_index(rounded, tolerance=0.01) == 33


def test_short_lists_show_none() -> None:
    for values in ([], [2.0], [1.0, 2.0], [1.0, 2.0, 4.0], [1.0, 2.0, 4.0, 8.0]):
        assert break_index(values) is None


def test_factors_below_1_are_no_change_to_a_larger_base() -> None:
    assert break_index([math.exp(-0.1 * pair) for pair in range(5)] + [1.0, 2.0]) is None
