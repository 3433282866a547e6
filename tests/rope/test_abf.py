"""Adjusted base frequency against the plain rotation of the other base."""

import numpy as np
import pytest

from rope.abf import abf_factors
from rope.frequencies import rescaled_inverse_frequencies


def test_the_default_is_the_paper_s_change_from_ten_thousand_to_half_a_million() -> None:
    factors = abf_factors(128, 1e4, original_length=4096, target_length=32_768)
    by_hand = [500_000.0 ** (-2 * pair / 128) for pair in range(64)]
    np.testing.assert_allclose(rescaled_inverse_frequencies(factors), by_hand, rtol=1e-12)  # float64 throughout


def test_another_base_is_the_plain_rotation_of_that_base() -> None:
    factors = abf_factors(64, 1e6, original_length=4096, target_length=32_768, new_base=5e6)
    by_hand = [5e6 ** (-2 * pair / 64) for pair in range(32)]
    np.testing.assert_allclose(rescaled_inverse_frequencies(factors), by_hand, rtol=1e-12)  # float64 throughout


def test_the_target_length_does_not_enter() -> None:
    short = abf_factors(64, 1e4, original_length=256, target_length=256)
    assert short.values == abf_factors(64, 1e4, original_length=256, target_length=4096).values


def test_a_new_base_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^new_base must be a finite number above 1, got 1\.0\."):
        abf_factors(64, 1e4, original_length=256, target_length=512, new_base=1.0)
