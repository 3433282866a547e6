"""What several tests of the formulas need: transformers' own functions and the published numbers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS


class TransformersRope(NamedTuple):
    """What transformers makes of a configuration."""

    inverse_frequencies: NDArray[np.float64]
    attention_factor: float


@pytest.fixture(scope="session")
def oracle() -> Callable[[str], Any]:
    """Published numbers by file name."""
    folder = Path(__file__).parents[1] / "oracles"
    return lambda name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def transformers_rope() -> Callable[..., TransformersRope]:
    """Inverse frequencies and attention factor as transformers computes them, in float32."""

    def compute(
        rope_type: str, rotary_dim: int, base: float, window: int, *, sequence_length: int | None = None, **options: Any
    ) -> TransformersRope:
        config = LlamaConfig(
            hidden_size=2 * rotary_dim,
            num_attention_heads=2,
            head_dim=rotary_dim,
            max_position_embeddings=window,
            rope_parameters={"rope_type": rope_type, "rope_theta": base, **options},
        )
        inv_freq, attention_factor = ROPE_INIT_FUNCTIONS[rope_type](config, "cpu", seq_len=sequence_length)
        return TransformersRope(inv_freq.numpy().astype(np.float64), float(attention_factor))

    return compute
