"""Frequencies and periods against transformers and published periods."""

from collections.abc import Callable

import numpy as np
import pytest
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from rope.factors import RescaleFactors
from rope.frequencies import (
    factors_of_kept_share,
    factors_of_new_base,
    inverse_frequencies,
    periods,
    rescaled_inverse_frequencies,
    rotations,
)


@pytest.mark.parametrize(("rotary_dim", "base"), [(128, 5e5), (96, 1e4), (64, 1e6), (32, 1e4)])
def test_inverse_frequencies_are_those_of_a_llama(rotary_dim: int, base: float) -> None:
    config = LlamaConfig(
        hidden_size=2 * rotary_dim,
        num_attention_heads=2,
        head_dim=rotary_dim,
        rope_parameters={"rope_type": "default", "rope_theta": base},
    )
    expected = LlamaRotaryEmbedding(config).inv_freq.numpy()
    # 1e-5: transformers computes in float32
    np.testing.assert_allclose(inverse_frequencies(rotary_dim, base), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("rotary_dim", "base", "pair", "period"),
    [
        (96, 1e4, 7, 24.1),
        (96, 1e4, 30, 1986.9),
        (96, 1e4, 31, 2407.2),
        (96, 1e4, 47, 51_861.7),
        (128, 5e5, 34, 6695.1),
        (128, 5e5, 35, 8218.7),
    ],
)
def test_periods_are_the_published_ones(rotary_dim: int, base: float, pair: int, period: float) -> None:
    assert round(float(periods(rotary_dim, base)[pair]), 1) == period


def test_rotations_are_the_window_over_the_period() -> None:
    # base 10^4, 8 dimensions: periods 2 pi * (1, 10, 100, 1000)
    by_hand = [6000 / 6.283185307179586 / 10**pair for pair in range(4)]
    np.testing.assert_allclose(rotations(8, 1e4, 6000), by_hand, rtol=1e-14)


def test_a_factor_multiplies_the_wavelength() -> None:
    factors = RescaleFactors(
        values=(1.0, 2.0, 0.5, 8.0), rotary_dim=8, base=1e4, original_length=256, target_length=512, method="published"
    )
    np.testing.assert_allclose(rescaled_inverse_frequencies(factors), [1.0, 0.05, 0.02, 0.000125], rtol=1e-14)


@pytest.mark.parametrize("pair", [3, 5.5, 40.0])
def test_factors_of_a_new_base_are_the_plain_rotation_of_that_base(pair: float) -> None:
    new_base = 1e4 * 6.0 ** (32 / (2 * pair))
    rotation = inverse_frequencies(32, 1e4) / factors_of_new_base(16, 6.0, pair)
    np.testing.assert_allclose(rotation, inverse_frequencies(32, new_base), rtol=1e-12)  # float64 throughout


def test_a_kept_share_blends_inverse_frequencies() -> None:
    kept = np.array([1.0, 0.75, 0.25, 0.0])
    by_hand = [1.0, 1 / (0.75 + 0.25 / 3), 1 / (0.25 + 0.75 / 3), 3.0]
    np.testing.assert_allclose(factors_of_kept_share(kept, 3.0), by_hand, rtol=1e-14)


@pytest.mark.parametrize("function", [inverse_frequencies, periods])
def test_a_rotation_that_no_model_has_is_refused(function: Callable[[int, float], object]) -> None:
    with pytest.raises(ValueError, match=r"^rotary_dim must be even \(dimensions rotate in pairs\), got 7\."):
        function(7, 1e4)
    with pytest.raises(ValueError, match=r"^base must be a finite number above 1, got 0\.5\."):
        function(8, 0.5)
