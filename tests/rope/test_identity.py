"""No scaling is the model as it was."""

import numpy as np

from rope.frequencies import inverse_frequencies, rescaled_inverse_frequencies
from rope.identity import none_factors


def test_no_scaling_is_bit_for_bit_the_original_rotation() -> None:
    factors = none_factors(128, 5e5, original_length=8192, target_length=131_072)
    assert factors.values == (1.0,) * 64
    np.testing.assert_array_equal(rescaled_inverse_frequencies(factors), inverse_frequencies(128, 5e5))
