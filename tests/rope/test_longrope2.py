"""LongRoPE2's factors against the published LLaMA3-8B list."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rope.frequencies import rescaled_inverse_frequencies
from rope.longrope2 import fill_below_critical_dim, longrope2_factors
from rope.temperature import longrope_temperature


def test_the_closed_form_reproduces_the_published_list_below_its_break(oracle: Callable[[str], Any]) -> None:
    published = oracle("longrope2_llama3_8b")
    long_factor, break_at = published["long_factor"], published["critical_dim"]
    filled = fill_below_critical_dim(long_factor[break_at:], break_at)
    # 5e-10: the list is published with ten digits
    np.testing.assert_allclose(filled, long_factor, rtol=5e-10)
    one_further = fill_below_critical_dim(long_factor[break_at + 1 :], break_at + 1)
    assert np.max(np.abs(one_further / long_factor - 1)) > 0.05


def test_the_published_list_and_temperature_come_out_as_transformers_reads_them(
    oracle: Callable[[str], Any], transformers_rope: Callable[..., Any]
) -> None:
    published = oracle("longrope2_llama3_8b")
    original, target = published["original_length"], published["target_length"]
    factors = longrope2_factors(
        published["rotary_dim"],
        published["base"],
        original_length=original,
        target_length=target,
        critical_dim=published["critical_dim"],
        right_values=published["long_factor"][published["critical_dim"] :],
    )
    expected = transformers_rope(
        "longrope",
        128,
        published["base"],
        target,
        sequence_length=target,
        original_max_position_embeddings=original,
        factor=target / original,
        long_factor=published["long_factor"],
        short_factor=[1.0] * 64,
    )
    # 1e-5: transformers computes in float32
    np.testing.assert_allclose(rescaled_inverse_frequencies(factors), expected.inverse_frequencies, rtol=1e-5)
    assert longrope_temperature(factors.scale, original) == published["attention_factor"] == expected.attention_factor


def test_the_default_is_the_scale_from_the_theoretical_critical_dimension_upward() -> None:
    factors = longrope2_factors(128, 5e5, original_length=8192, target_length=131_072)
    assert factors.critical_dim == 35
    assert factors.values[35:] == (16.0,) * 29
    assert factors.values[:35] == pytest.approx([16 ** (pair / 35) for pair in range(35)], rel=1e-14)


def test_a_critical_dimension_of_zero_leaves_nothing_to_fill() -> None:
    assert fill_below_critical_dim([4.0, 5.0], 0).tolist() == [4.0, 5.0]


def test_the_first_factor_is_exactly_one() -> None:
    assert fill_below_critical_dim(np.array([21.81, 21.87]), 33)[0] == 1.0


def test_a_critical_dimension_outside_the_pairs_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^critical_dim must be at most 3 \(rotary_dim 8 / 2 - 1\), got 4\. It counts"
    ):
        longrope2_factors(8, 1e4, original_length=256, target_length=512, critical_dim=4)
    with pytest.raises(ValueError, match=r"^critical_dim must be a whole number of at least 0, got -1\."):
        longrope2_factors(8, 1e4, original_length=256, target_length=512, critical_dim=-1)


def test_right_values_of_another_length_are_refused() -> None:
    message = r"^right_values must have 2 entries \(rotary_dim 8 / 2 - critical_dim 2\), got 3\. Give one for each pair"
    with pytest.raises(ValueError, match=message):
        longrope2_factors(8, 1e4, original_length=256, target_length=512, critical_dim=2, right_values=[2.0, 2.0, 2.0])


def test_a_right_value_that_is_no_factor_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^values\[3\] must be a finite number above 0, got nan\."):
        longrope2_factors(
            8, 1e4, original_length=256, target_length=512, critical_dim=2, right_values=[2.0, float("nan")]
        )
