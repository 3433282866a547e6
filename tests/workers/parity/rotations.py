"""Rotations made by arithmetic of their own, for tests of the comparison."""

import math
from collections.abc import Sequence

import numpy as np

from rope.factors import RescaleFactors
from workers.parity.probe import Rotation

ORIGINAL, TARGET, BASE, ROTARY_DIM = 256, 1024, 10_000.0, 64
TEMPERATURE = math.sqrt(1 + math.log(TARGET / ORIGINAL) / math.log(ORIGINAL))
LONG = [1.0 + 3.0 * (pair / 31) ** 1.5 for pair in range(32)]
SHORT = [1.0] * 32


def factors_of(temperature: float = TEMPERATURE) -> RescaleFactors:
    return RescaleFactors.from_list(
        LONG,
        rotary_dim=ROTARY_DIM,
        base=BASE,
        original_length=ORIGINAL,
        target_length=TARGET,
        attention_temperature=temperature,
    )


def by_hand(values: Sequence[float], temperature: float, positions: Sequence[int]) -> Rotation:
    """cos and sin of position / (lambda_i base^(2i/d)), times the temperature, rounded to float32."""
    inv_freq = [1.0 / (value * BASE ** (2 * pair / ROTARY_DIM)) for pair, value in enumerate(values)]
    angles = np.array([[position * frequency for frequency in inv_freq] for position in positions])
    cos, sin = temperature * np.cos(angles), temperature * np.sin(angles)
    return Rotation(cos.astype(np.float32).tolist(), sin.astype(np.float32).tolist())


def row(rotation: Rotation, index: int) -> tuple[list[float], list[float]]:
    return rotation.cos[index], rotation.sin[index]
