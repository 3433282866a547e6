"""Compares an engine's rotation with ours in float64, and says in words where it is another.

N positions, P frequency pairs.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from results.parity import DIFFERS, SAME
from rope.factors import RescaleFactors
from rope.frequencies import rescaled_inverse_frequencies
from workers.parity.probe import Rotation

SAME_FREQUENCY = 1e-6
"""Relative difference of float32 frequencies: roundings of factor, power, product and inverse, and that of the
exponent, which counts ln(base) times, come to 1e-6 in the worst case of base 10^6."""
FLOAT32 = 2.0**-24
"""Half a unit in the last place of 1."""
NUM_ROUNDINGS = 5
"""Of an angle in float32: factor, power, product, inverse, and position times frequency."""
FLOOR = 1e-5
"""What cos and sin may be off besides, where the angle is right: a library's own cos, the temperature's rounding."""


class Window(NamedTuple):
    """A rotation that an engine may take, in float64."""

    name: str
    """short or long."""
    inv_freq: NDArray[np.float64]
    """Radians per token, shape (P,)."""
    temperature: float
    """Multiplies cos and sin."""


class Comparison(NamedTuple):
    """What came of one input."""

    factors: str
    """The list that it was rotated by: short, long, or neither."""
    inv_freq_difference: float
    """Largest relative difference of an inverse frequency from the wanted one."""
    rotation_difference: float
    """Largest difference of cos or sin from the wanted one."""
    verdict: str
    """same, or how it differs."""


class Reasons(NamedTuple):
    """Why an engine rotates otherwise where it is known to, for the end of a verdict; empty where it is not."""

    factors: str = ""
    """Where it takes the other list."""
    temperature: str = ""
    """Where its temperature is that of the other list."""
    positions: str = ""
    """Where single positions are rotated otherwise."""


def window_of(name: str, factors: RescaleFactors) -> Window:
    """Return the rotation of factors.

    Args:
        name: short or long.
        factors: Rescale factors with their model.
    """
    return Window(name, rescaled_inverse_frequencies(factors), factors.attention_temperature)


def compare(
    rotation: Rotation,
    positions: Sequence[int],
    *,
    wanted: Window,
    other: Window,
    base: float,
    reasons: Reasons = Reasons(),  # noqa: B008 - a NamedTuple cannot change
) -> Comparison:
    """Return whether an engine rotates one input as it should.

    Args:
        rotation: What it rotates by.
        positions: Where, shape (N,); 0 and 1 among them.
        wanted: What it should rotate by.
        other: What it may have taken instead.
        base: RoPE base, for the rounding of its powers.
        reasons: Why it differs where it is known to.

    Returns:
        The list it took, the differences, the verdict.
    """
    at = np.array(positions, dtype=np.float64)
    got = np.array(rotation.cos, dtype=np.float64), np.array(rotation.sin, dtype=np.float64)
    inv_freq = _inv_freq(rotation, positions)
    temperature = float(got[0][positions.index(0)].mean())  # cos(0) is 1
    taken = next((window for window in (wanted, other) if _relative(inv_freq, window) <= SAME_FREQUENCY), None)
    off = _difference(got, at, wanted)
    faults = []
    if taken is None:
        pair = int(np.argmax(np.abs(inv_freq / wanted.inv_freq - 1.0)))
        ratio = inv_freq[pair] / wanted.inv_freq[pair]
        faults.append(f"factors of neither list, pair {pair} turns {ratio:.6g} times as fast")
    elif taken is not wanted:
        faults.append(f"{taken.name} factors instead of the {wanted.name} ones{_because(reasons.factors)}")
    tolerated = FLOOR + rotation.rounding
    if abs(temperature - wanted.temperature) <= tolerated:
        temperature = wanted.temperature  # without its rounding, which would count twice below
    else:
        is_the_others = abs(temperature - other.temperature) <= tolerated
        reason = _because(reasons.temperature) if is_the_others else ""
        faults.append(f"cos and sin times {temperature:.4f} instead of {wanted.temperature:.4f}{reason}")
    if taken is not None:
        actual = taken._replace(temperature=temperature)
        wrong = _difference(got, at, actual) > _tolerance(at, actual, base) + rotation.rounding
        lost = [row for row in range(len(at)) if wrong[row].any()]
        faults += [_position(row, positions, got) + _because(reasons.positions) for row in lost]
    verdict = DIFFERS + "; ".join(faults) if faults else SAME
    name = "neither" if taken is None else taken.name
    return Comparison(name, _relative(inv_freq, wanted), float(off.max()), verdict)


def _inv_freq(rotation: Rotation, positions: Sequence[int]) -> NDArray[np.float64]:
    """Return what each pair turns by from token to token: as the engine shows it, else its angle at position 1."""
    if rotation.inv_freq is not None:
        return np.array(rotation.inv_freq, dtype=np.float64)
    row = positions.index(1)
    return np.arctan2(np.array(rotation.sin[row], dtype=np.float64), np.array(rotation.cos[row], dtype=np.float64))


def _relative(inv_freq: NDArray[np.float64], window: Window) -> float:
    return float(np.abs(inv_freq / window.inv_freq - 1.0).max())


def _difference(
    got: tuple[NDArray[np.float64], NDArray[np.float64]], at: NDArray[np.float64], window: Window
) -> NDArray[np.float64]:
    """Return the larger difference of cos and sin, shape (N, P)."""
    angles = at[:, None] * window.inv_freq
    cos, sin = np.cos(angles) * window.temperature, np.sin(angles) * window.temperature
    return np.maximum(np.abs(got[0] - cos), np.abs(got[1] - sin))


def _tolerance(at: NDArray[np.float64], window: Window, base: float) -> NDArray[np.float64]:
    """Return how far float32 may be off, shape (N, P): an angle's roundings move cos and sin by as much."""
    shares = np.arange(len(window.inv_freq)) / len(window.inv_freq)
    roundings = NUM_ROUNDINGS + shares * np.log(base)  # that of the exponent 2i/d counts ln(base) times
    angles = at[:, None] * window.inv_freq
    tolerance: NDArray[np.float64] = FLOOR + FLOAT32 * window.temperature * roundings * angles
    return tolerance


def _position(row: int, positions: Sequence[int], got: tuple[NDArray[np.float64], NDArray[np.float64]]) -> str:
    cos, sin = got[0][row], got[1][row]
    is_first = row > 0 and bool(np.abs(sin).max() < FLOOR and np.ptp(cos) < FLOOR)
    return f"position {positions[row]} is rotated {'as position 0' if is_first else 'otherwise'}"


def _because(reason: str) -> str:
    return f" ({reason})" if reason else ""
