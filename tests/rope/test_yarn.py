"""YaRN against transformers, published ranges, and the method it is mistaken for."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rope.frequencies import rescaled_inverse_frequencies
from rope.longrope import longrope_factors
from rope.temperature import yarn_temperature
from rope.yarn import YarnRange, yarn_factors, yarn_ramp, yarn_range


@pytest.mark.parametrize(
    ("rotary_dim", "base", "original", "target", "options"),
    [
        (128, 1e4, 4096, 65_536, {}),
        (128, 5e5, 8192, 131_072, {}),
        (96, 1e4, 2048, 131_072, {}),
        (64, 1e5, 8192, 16_384, {}),
        (64, 1e4, 512, 8192, {}),
        (32, 1e4, 256, 1000, {"beta_fast": 16.0, "beta_slow": 2.0}),
        (16, 100.0, 4096, 8192, {}),
    ],
)
def test_yarn_factors_and_temperature_are_those_of_transformers(
    rotary_dim: int,
    base: float,
    original: int,
    target: int,
    options: dict[str, float],
    transformers_rope: Callable[..., Any],
) -> None:
    factors = yarn_factors(rotary_dim, base, original_length=original, target_length=target, **options)
    expected = transformers_rope(
        "yarn",
        rotary_dim,
        base,
        original,
        factor=target / original,
        original_max_position_embeddings=original,
        **options,
    )
    # 1e-5: transformers computes in float32
    np.testing.assert_allclose(rescaled_inverse_frequencies(factors), expected.inverse_frequencies, rtol=1e-5)
    assert yarn_temperature(factors.scale) == pytest.approx(expected.attention_factor, rel=1e-12)


def test_yarn_blends_inverse_frequencies_and_not_factors() -> None:
    # LLaMA2 at 16x: pair 30 is 10/26 up the ramp from 20 to 46; two known code bases ship the second number as YaRN
    window = {"original_length": 4096, "target_length": 65_536}
    inverse_frequency_blend = 1 / (16 / 26 + 10 / 26 / 16)
    factor_blend = 1 + 15 * 10 / 26
    assert yarn_factors(128, 1e4, **window).values[30] == pytest.approx(inverse_frequency_blend, rel=1e-14)
    assert longrope_factors(128, 1e4, **window).values[30] == pytest.approx(factor_blend, rel=1e-14)
    assert (round(inverse_frequency_blend, 2), round(factor_blend, 2)) == (1.56, 6.77)


def test_yarn_ranges_are_the_published_ones(oracle: Callable[[str], Any]) -> None:
    for case in oracle("yarn_ranges"):
        found = yarn_range(case["rotary_dim"], case["base"], case["original_length"])
        assert found == YarnRange(case["low"], case["high"]), case["model"]


def test_both_ends_of_the_ramp_are_met_exactly() -> None:
    factors = yarn_factors(128, 5e5, original_length=8192, target_length=8192 * 49)
    assert set(factors.values[: 18 + 1]) == {1.0}
    assert set(factors.values[35:]) == {49.0}


def test_a_window_in_which_every_pair_turns_often_leaves_all_as_they_are() -> None:
    # base 10, 4 dimensions: the slowest pair turns 50 000 times
    assert yarn_factors(4, 10.0, original_length=1_000_000, target_length=4_000_000).values == (1.0, 1.0)


def test_the_ramp_rises_from_zero_to_one() -> None:
    ramp = yarn_ramp(128, 1e4, 4096)
    assert (ramp[20], ramp[33], ramp[46]) == (0.0, 0.5, 1.0)
    assert np.all(np.diff(ramp) >= 0)


def test_betas_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^beta_fast must be a finite number above 32, got 1\.0\."):
        yarn_factors(8, 1e4, original_length=256, target_length=512, beta_fast=1.0, beta_slow=32.0)
    with pytest.raises(ValueError, match=r"^beta_slow must be a finite number above 0, got 0\.0\."):
        yarn_factors(8, 1e4, original_length=256, target_length=512, beta_slow=0.0)
