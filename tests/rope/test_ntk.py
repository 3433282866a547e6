"""The three forms of NTK against transformers, published bases and arithmetic by hand."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rope.frequencies import inverse_frequencies, rescaled_inverse_frequencies
from rope.ntk import dynamic_ntk_factors, ntk_critical_factors, ntk_factors

CONFIGURATIONS = [(128, 1e4, 4096, 65_536), (64, 5e5, 8192, 16_384), (96, 1e4, 2048, 131_072), (32, 1e4, 256, 1000)]


@pytest.mark.parametrize(("rotary_dim", "base", "original", "target"), CONFIGURATIONS)
def test_dynamic_ntk_factors_are_those_of_transformers(
    rotary_dim: int, base: float, original: int, target: int, transformers_rope: Callable[..., Any]
) -> None:
    factors = dynamic_ntk_factors(rotary_dim, base, original_length=original, target_length=target)
    expected = transformers_rope(
        "dynamic", rotary_dim, base, original, sequence_length=target, factor=target / original
    )
    # 1e-5: transformers computes in float32
    np.testing.assert_allclose(rescaled_inverse_frequencies(factors), expected.inverse_frequencies, rtol=1e-5)


@pytest.mark.parametrize(("factor", "sequence_length"), [(1.0, 8192), (2.0, 5000), (4.0, 4096), (4.0, 100)])
def test_dynamic_ntk_options_are_those_of_transformers(
    factor: float, sequence_length: int, transformers_rope: Callable[..., Any]
) -> None:
    factors = dynamic_ntk_factors(
        128, 1e4, original_length=4096, target_length=16_384, factor=factor, sequence_length=sequence_length
    )
    expected = transformers_rope("dynamic", 128, 1e4, 4096, sequence_length=sequence_length, factor=factor)
    # 1e-5: transformers computes in float32
    np.testing.assert_allclose(rescaled_inverse_frequencies(factors), expected.inverse_frequencies, rtol=1e-5)


@pytest.mark.parametrize(("rotary_dim", "base", "original", "target"), CONFIGURATIONS)
def test_the_exponent_form_is_dynamic_ntk_of_transformers_with_a_factor_of_one(
    rotary_dim: int, base: float, original: int, target: int, transformers_rope: Callable[..., Any]
) -> None:
    factors = ntk_factors(rotary_dim, base, original_length=original, target_length=target)
    expected = transformers_rope("dynamic", rotary_dim, base, original, sequence_length=target, factor=1.0)
    # 1e-5: transformers computes in float32
    np.testing.assert_allclose(rescaled_inverse_frequencies(factors), expected.inverse_frequencies, rtol=1e-5)


@pytest.mark.parametrize(
    ("rotary_dim", "base", "original", "target", "new_base", "last"),
    [(128, 5e5, 8192, 131_072, 79_760_692, 147.37), (96, 1e4, 2048, 131_072, 7_494_913, 652.94)],
)
def test_the_critical_form_reaches_the_published_bases(
    rotary_dim: int, base: float, original: int, target: int, new_base: float, last: float
) -> None:
    factors = ntk_critical_factors(rotary_dim, base, original_length=original, target_length=target)
    # 1e-7: the bases are published as whole numbers
    np.testing.assert_allclose(
        rescaled_inverse_frequencies(factors), inverse_frequencies(rotary_dim, new_base), rtol=1e-7
    )
    assert round(factors.values[-1], 2) == last


def test_the_critical_form_makes_the_window_period_the_target_period() -> None:
    # base 10^4 and 8 dimensions: pair 2 has a period of 2 pi * 100 tokens, the window, and so gets the scale 3
    factors = ntk_critical_factors(8, 1e4, original_length=628, target_length=1884)
    assert factors.values == pytest.approx((1.0, 3**0.5, 3.0, 3**1.5), rel=1e-3)  # 628 is 2 pi * 99.95


def test_an_original_window_in_which_nothing_turns_is_refused_by_the_critical_form() -> None:
    with pytest.raises(
        ValueError, match=r"^original_length must be above 2 pi tokens .* got 6\. Give the pre-training"
    ):
        ntk_critical_factors(8, 1e4, original_length=6, target_length=12)


@pytest.mark.parametrize(("formula", "name"), [(ntk_factors, "ntk"), (dynamic_ntk_factors, "dynamic-ntk")])
def test_a_single_pair_is_refused_by_the_exponent_form(formula: Callable[..., Any], name: str) -> None:
    with pytest.raises(ValueError, match=rf"^rotary_dim must be at least 4 for the method {name}, got 2\. A single"):
        formula(2, 1e4, original_length=256, target_length=512)


def test_bad_options_of_dynamic_ntk_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^factor must be a finite number above 0, got -1\.0\."):
        dynamic_ntk_factors(8, 1e4, original_length=256, target_length=512, factor=-1.0)
    with pytest.raises(ValueError, match=r"^sequence_length must be a whole number of at least 1, got 0\."):
        dynamic_ntk_factors(8, 1e4, original_length=256, target_length=512, sequence_length=0)
