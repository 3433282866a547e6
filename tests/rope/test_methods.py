"""What holds for every formula."""

import json

import numpy as np
import pytest

from rope.factors import RescaleFactors
from rope.frequencies import rescaled_inverse_frequencies
from rope.methods import METHODS, PAPER_TEMPERATURE
from rope.temperature import attention_temperature

CONFIGURATIONS = [
    (128, 5e5, 8192, 131_072),
    (96, 1e4, 2048, 131_072),
    (64, 1e5, 8192, 16_384),
    (32, 1e4, 256, 1000),
    (16, 100.0, 4096, 8192),
    (4, 1e4, 7, 8),
]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("rotary_dim", "base", "original", "target"), CONFIGURATIONS)
def test_factors_rise_from_at_least_one_and_carry_their_name(
    name: str, rotary_dim: int, base: float, original: int, target: int
) -> None:
    factors = METHODS[name](rotary_dim, base, original_length=original, target_length=target)
    assert len(factors.values) == rotary_dim // 2
    assert factors.values[0] >= 1.0
    assert np.all(np.diff(factors.values) >= 0)
    assert np.all(np.diff(rescaled_inverse_frequencies(factors)) < 0)
    assert (factors.method, factors.attention_temperature, factors.scale) == (name, 1.0, target / original)


@pytest.mark.parametrize("name", METHODS)
def test_factors_come_back_from_json_bit_for_bit(name: str) -> None:
    factors = METHODS[name](96, 1e4, original_length=2048, target_length=65_000)
    assert RescaleFactors.from_json(factors.to_json()) == factors
    assert json.loads(factors.to_json())["values"] == list(factors.values)


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"abf"}))
def test_scale_one_changes_nothing(name: str) -> None:
    factors = METHODS[name](64, 1e4, original_length=512, target_length=512)
    assert factors.values == (1.0,) * 32
    assert attention_temperature(PAPER_TEMPERATURE[name], scale=1.0, original_length=512) == 1.0


@pytest.mark.parametrize("name", METHODS)
def test_bad_geometry_is_refused_before_any_arithmetic(name: str) -> None:
    with pytest.raises(ValueError, match=r"^rotary_dim must be even \(dimensions rotate in pairs\), got 63\."):
        METHODS[name](63, 1e4, original_length=256, target_length=512)
    with pytest.raises(ValueError, match=r"^base must be a finite number above 1, got 1\.0\."):
        METHODS[name](64, 1.0, original_length=256, target_length=512)
    with pytest.raises(ValueError, match=r"^original_length must be a whole number of at least 1, got 0\."):
        METHODS[name](64, 1e4, original_length=0, target_length=512)
    with pytest.raises(ValueError, match=r"^target_length must be at least original_length 512, got 256\."):
        METHODS[name](64, 1e4, original_length=512, target_length=256)


def test_every_method_has_its_paper_s_temperature() -> None:
    assert PAPER_TEMPERATURE.keys() == METHODS.keys()
    named = {name: choice for name, choice in PAPER_TEMPERATURE.items() if choice != "none"}
    assert named == {"yarn": "yarn", "longrope": "longrope", "longrope2": "longrope"}
