"""Position Interpolation against transformers."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rope.frequencies import rescaled_inverse_frequencies
from rope.linear import linear_factors


@pytest.mark.parametrize(
    ("rotary_dim", "base", "original", "target"),
    [(128, 1e4, 2048, 8192), (64, 5e5, 8192, 131_072), (96, 1e4, 2048, 3000), (32, 1e4, 256, 256)],
)
def test_linear_factors_are_those_of_transformers(
    rotary_dim: int, base: float, original: int, target: int, transformers_rope: Callable[..., Any]
) -> None:
    factors = linear_factors(rotary_dim, base, original_length=original, target_length=target)
    expected = transformers_rope("linear", rotary_dim, base, original, factor=target / original)
    # 1e-5: transformers computes in float32
    np.testing.assert_allclose(rescaled_inverse_frequencies(factors), expected.inverse_frequencies, rtol=1e-5)


def test_every_pair_gets_the_scale() -> None:
    factors = linear_factors(8, 1e4, original_length=512, target_length=2048)
    assert factors.values == (4.0, 4.0, 4.0, 4.0)
    assert factors.method == "linear"
