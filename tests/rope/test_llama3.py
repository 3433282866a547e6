"""Llama-3.1's scaling against transformers."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rope.frequencies import rescaled_inverse_frequencies
from rope.llama3 import llama3_factors


@pytest.mark.parametrize(
    ("rotary_dim", "base", "original", "target", "options"),
    [
        (128, 5e5, 8192, 131_072, {}),
        (128, 5e5, 8192, 131_072, {"factor": 8.0}),
        (64, 5e5, 8192, 131_072, {"factor": 32.0}),
        (64, 1e4, 512, 4096, {}),
        (32, 1e4, 256, 1000, {"low_freq_factor": 2.0, "high_freq_factor": 8.0}),
    ],
)
def test_llama3_factors_are_those_of_transformers(
    rotary_dim: int,
    base: float,
    original: int,
    target: int,
    options: dict[str, float],
    transformers_rope: Callable[..., Any],
) -> None:
    factors = llama3_factors(rotary_dim, base, original_length=original, target_length=target, **options)
    defaults = {"factor": target / original, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    expected = transformers_rope(
        "llama3", rotary_dim, base, target, original_max_position_embeddings=original, **{**defaults, **options}
    )
    # 1e-5: transformers computes in float32
    np.testing.assert_allclose(rescaled_inverse_frequencies(factors), expected.inverse_frequencies, rtol=1e-5)


def test_both_ends_of_the_blend_are_met_exactly() -> None:
    # periods of base 10^4 and 8 dimensions: 6.3, 63, 628, 6283; in 3000 tokens 477, 48, 4.8 and 0.48 turns
    assert llama3_factors(8, 1e4, original_length=3000, target_length=21_000).values == (1.0, 1.0, 1.0, 7.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factor": 0.0}, r"^factor must be a finite number above 0, got 0\.0\."),
        ({"low_freq_factor": -1.0}, r"^low_freq_factor must be a finite number above 0, got -1\.0\."),
        ({"high_freq_factor": 1.0}, r"^high_freq_factor must be a finite number above 1, got 1\.0\."),
    ],
)
def test_bad_options_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        llama3_factors(8, 1e4, original_length=256, target_length=512, **options)
