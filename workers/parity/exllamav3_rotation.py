"""ExLlamaV3's rotation: `exllamav3/util/rope.py`, whose CUDA extension is stubbed, and its reading of config.json."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch

from workers.parity.probe import Probe, Rotation
from workers.parity.source import cut, load_file, stub


def rotate(probe: Probe) -> list[Rotation]:
    """Return what ExLlamaV3 rotates by; config.json alone decides on the list, once.

    Args:
        probe: What it is asked.

    Returns:
        One rotation per input.
    """
    root = Path(probe.root)
    stub("exllamav3")
    stub("exllamav3.ext", exllamav3_ext=None)
    stub("exllamav3.util")
    rope_file = load_file(root / "util/rope.py", "exllamav3.util.rope")
    rope = rope_file.RoPE("cpu", _settings(root, rope_file, probe))
    num_pairs = probe.rotary_dim // 2
    rotations = []
    for positions in probe.inputs:
        sin_ND, cos_ND = rope.compute_sincos(torch.tensor(positions))
        tables = cos_ND[:, :num_pairs].tolist(), sin_ND[:, :num_pairs].tolist()
        rotations.append(Rotation(*tables, rope.inv_freq.tolist()))
    return rotations


def _settings(root: Path, rope_file: Any, probe: Probe) -> object:
    config: Any = probe.config
    known = {"cast": cast, "T": object, "no_default": object(), "RopeSettings": rope_file.RopeSettings}
    known = cut(root / "util/file.py", ["read_dict"], known)
    read: Any = cut(root / "model/config.py", ["read_rope_settings_default"], known, inside="Config")
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    owner = SimpleNamespace(config_dict=config, head_dim=size)
    settings: object = read["read_rope_settings_default"](owner, rope_file.RopeStyle.NEOX)
    return settings
