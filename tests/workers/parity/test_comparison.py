import numpy as np
import pytest

from rope.identity import none_factors
from tests.workers.parity.rotations import (
    BASE,
    LONG,
    ORIGINAL,
    ROTARY_DIM,
    SHORT,
    TARGET,
    TEMPERATURE,
    by_hand,
    factors_of,
)
from workers.parity.comparison import Comparison, Reasons, Window, compare, window_of
from workers.parity.probe import Rotation

UNKNOWN = Reasons()
POSITIONS = (0, 1, ORIGINAL - 1, ORIGINAL, ORIGINAL + 1, TARGET - 1)
NONE = none_factors(ROTARY_DIM, BASE, original_length=ORIGINAL, target_length=TARGET)


def windows() -> tuple[Window, Window]:
    return window_of("long", factors_of()), window_of("short", NONE)


def judged(rotation: Rotation, reasons: Reasons = UNKNOWN) -> Comparison:
    long, short = windows()
    return compare(rotation, POSITIONS, wanted=long, other=short, base=BASE, reasons=reasons)


def test_the_right_rotation_in_float32_is_the_same() -> None:
    found = judged(by_hand(LONG, TEMPERATURE, POSITIONS))
    assert (found.factors, found.verdict) == ("long", "same")
    assert found.inv_freq_difference < 1e-6
    assert found.rotation_difference < 1e-6  # angles in float64, only the tables are rounded


def test_angles_in_float32_are_the_same() -> None:
    powers = np.float32(BASE) ** (np.arange(0, 64, 2, dtype=np.float32) / np.float32(64))
    inv_freq = np.float32(1) / (np.array(LONG, dtype=np.float32) * powers)
    angles = np.array(POSITIONS, dtype=np.float32)[:, None] * inv_freq
    cos, sin = np.cos(angles) * np.float32(TEMPERATURE), np.sin(angles) * np.float32(TEMPERATURE)
    assert judged(Rotation(cos.tolist(), sin.tolist())).verdict == "same"


def test_half_tables_are_the_same_only_where_their_rounding_is_said() -> None:
    exact = by_hand(LONG, TEMPERATURE, POSITIONS)
    inv_freq = [1.0 / (value * BASE ** (2 * pair / ROTARY_DIM)) for pair, value in enumerate(LONG)]
    half = [np.array(table, dtype=np.float16).tolist() for table in (exact.cos, exact.sin)]
    assert judged(Rotation(half[0], half[1], inv_freq, 2.0**-11)).verdict == "same"
    assert judged(Rotation(half[0], half[1], inv_freq)).verdict.startswith("differs: ")


def test_the_other_list_is_named() -> None:
    found = judged(by_hand(SHORT, TEMPERATURE, POSITIONS), Reasons(factors="always so"))
    assert found.factors == "short"
    assert found.verdict == "differs: short factors instead of the long ones (always so)"


def test_factors_in_reversed_order_are_found() -> None:
    found = judged(by_hand(LONG[::-1], TEMPERATURE, POSITIONS))
    assert found.factors == "neither"
    # The last pair got factor 1 in place of 4
    assert found.verdict == "differs: factors of neither list, pair 31 turns 4 times as fast"


@pytest.mark.parametrize("pair", [0, 17, 31])
def test_one_factor_that_is_off_by_a_hundred_thousandth_is_found(pair: int) -> None:
    values = [value * (1 + 1e-5 * (index == pair)) for index, value in enumerate(LONG)]
    assert judged(by_hand(values, TEMPERATURE, POSITIONS)).factors == "neither"


def test_a_missing_temperature_is_found() -> None:
    found = judged(by_hand(LONG, 1.0, POSITIONS), Reasons(temperature="that of the short"))
    assert found.factors == "long"
    assert (
        found.verdict == "differs: cos and sin times 1.0000 instead of 1.1180 (that of the short)"
    )  # sqrt(1 + ln 4 / ln 256)


def test_a_position_that_gets_another_ones_row_is_found() -> None:
    right = by_hand(LONG, TEMPERATURE, POSITIONS)
    for source, words in ((0, "as position 0"), (5, "otherwise")):
        cos, sin = list(right.cos), list(right.sin)
        cos[3], sin[3] = cos[source], sin[source]
        found = judged(Rotation(cos, sin), Reasons(positions="the border"))
        assert found.verdict == f"differs: position {ORIGINAL} is rotated {words} (the border)"
