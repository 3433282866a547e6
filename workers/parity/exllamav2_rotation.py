"""ExLlamaV2's rotation: `exllamav2/rope.py`, which imports torch alone, and the half tables that it makes of it.

What its config.py reads is read here by the same keys, since that is one function of the whole configuration.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from workers.parity.probe import Probe, Rotation
from workers.parity.source import load_file

HALF_ROUNDING = 2.0**-11
"""Half of the distance between two float16 numbers from 1 to 2, where cos and sin times a temperature end."""


def rotate(probe: Probe) -> list[Rotation]:
    """Return what ExLlamaV2 rotates by when it is loaded with max_seq_len (-l) `server_length`.

    Args:
        probe: What it is asked.

    Returns:
        One rotation per input; the table is float16.
    """
    module = load_file(Path(probe.root, "rope.py"), "exllamav2_rope")
    inv_freq_P, temperature = module.get_rope_params("cpu", _settings(probe), probe.config["rope_theta"])
    rotations = []
    for positions in probe.inputs:
        angles_NP = torch.einsum("i,j->ij", torch.tensor(positions, dtype=torch.float32), inv_freq_P)
        cos_NP, sin_NP = ((table * temperature).half() for table in (angles_NP.cos(), angles_NP.sin()))
        rotations.append(Rotation(cos_NP.tolist(), sin_NP.tolist(), inv_freq_P.tolist(), HALF_ROUNDING))
    return rotations


def _settings(probe: Probe) -> SimpleNamespace:
    config: Any = probe.config
    scaling = config["rope_scaling"]
    kinds = [scaling[key] for key in ("type", "rope_type") if scaling.get(key)]
    if len(kinds) != 1 or kinds[0] not in ("su", "longrope"):
        raise ValueError(f"ExLlamaV2 takes longrope under one of type and rope_type, got {kinds}")
    return SimpleNamespace(
        head_dim=config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
        partial_rotary_factor=config.get("partial_rotary_factor", 1.0),
        scale_alpha_value=1.0,
        max_seq_len=probe.server_length,
        original_max_seq_len=config["original_max_position_embeddings"],
        scale_long_factor=scaling["long_factor"],
        scale_short_factor=scaling["short_factor"],
        alt_rope_method="su",
        arch=SimpleNamespace(lm=SimpleNamespace(rope_freq_half=False)),
    )
