"""LongRoPE's start against its published code's ranges, its installed factors against transformers."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rope.factors import RescaleFactors
from rope.frequencies import rescaled_inverse_frequencies
from rope.longrope import NUM_START_TOKENS_SEARCHED, longrope_factors
from rope.temperature import longrope_temperature


def test_the_start_is_a_straight_line_over_the_published_range(oracle: Callable[[str], Any]) -> None:
    for case in oracle("yarn_ranges"):
        original = case["original_length"]
        factors = longrope_factors(
            case["rotary_dim"], case["base"], original_length=original, target_length=16 * original
        )
        low, high = case["low"], case["high"]
        line = [1 + 15 * min(max((pair - low) / (high - low), 0), 1) for pair in range(case["rotary_dim"] // 2)]
        assert factors.values == pytest.approx(line, rel=1e-14), case["model"]


def test_published_factors_installed_are_those_of_transformers(
    oracle: Callable[[str], Any], transformers_rope: Callable[..., Any]
) -> None:
    published = oracle("longrope_phi3_mini")
    options = {"original_max_position_embeddings": 4096, "factor": 32.0, **published}
    for kind, sequence_length in (("short_factor", 4096), ("long_factor", 4097)):
        factors = RescaleFactors.from_list(
            published[kind], rotary_dim=96, base=1e4, original_length=4096, target_length=131_072
        )
        expected = transformers_rope("longrope", 96, 1e4, 131_072, sequence_length=sequence_length, **options)
        # 1e-5: transformers computes in float32
        np.testing.assert_allclose(rescaled_inverse_frequencies(factors), expected.inverse_frequencies, rtol=1e-5)
        assert longrope_temperature(factors.scale, 4096) == pytest.approx(expected.attention_factor, rel=1e-12)


@pytest.mark.parametrize(
    ("rotary_dim", "base", "original", "target"),
    [(128, 1e4, 4096, 65_536), (64, 5e5, 8192, 9000), (32, 1e4, 256, 1024)],
)
def test_its_own_factors_installed_are_those_of_transformers(
    rotary_dim: int, base: float, original: int, target: int, transformers_rope: Callable[..., Any]
) -> None:
    factors = longrope_factors(rotary_dim, base, original_length=original, target_length=target)
    expected = transformers_rope(
        "longrope",
        rotary_dim,
        base,
        target,
        sequence_length=target,
        original_max_position_embeddings=original,
        factor=target / original,
        long_factor=list(factors.values),
        short_factor=[1.0] * (rotary_dim // 2),
    )
    # 1e-5: transformers computes in float32
    np.testing.assert_allclose(rescaled_inverse_frequencies(factors), expected.inverse_frequencies, rtol=1e-5)
    assert longrope_temperature(factors.scale, original) == pytest.approx(expected.attention_factor, rel=1e-12)


def test_start_tokens_are_carried_and_change_no_factor() -> None:
    with_tokens = longrope_factors(64, 1e4, original_length=256, target_length=1024, num_start_tokens=16)
    without = longrope_factors(64, 1e4, original_length=256, target_length=1024)
    assert (with_tokens.num_start_tokens, without.num_start_tokens) == (16, 0)
    assert with_tokens.values == without.values
    assert with_tokens != without


def test_the_searched_numbers_of_start_tokens_are_the_paper_s() -> None:
    assert NUM_START_TOKENS_SEARCHED == (0, 1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 64, 128, 256)


def test_a_negative_number_of_start_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^num_start_tokens must be a whole number of at least 0, got -1\."):
        longrope_factors(64, 1e4, original_length=256, target_length=1024, num_start_tokens=-1)
