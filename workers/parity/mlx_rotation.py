"""mlx-lm's rotation: the attention of the model's own module, built from config.json; mlx runs on any CPU too."""

import importlib
from pathlib import Path
from typing import Any

from workers.parity.probe import Probe, Rotation
from workers.parity.source import cut, stub


def rotate(probe: Probe) -> list[Rotation]:
    """Return what mlx-lm rotates by; the length of the input plays no part.

    Args:
        probe: What it is asked.

    Returns:
        One rotation per input.
    """
    mx: Any = importlib.import_module("mlx.core")
    mx.set_default_device(mx.cpu)
    rope = _rope(Path(probe.root), probe.config)
    num_pairs = probe.rotary_dim // 2
    unit = mx.concatenate([mx.ones((1, 1, 1, num_pairs)), mx.zeros((1, 1, 1, num_pairs))], -1)
    inv_freq = (1.0 / rope._freqs).tolist() if hasattr(rope, "_freqs") else None
    rotations = []
    for positions in probe.inputs:
        rows = [rope(unit, offset=position)[0, 0, 0].tolist() for position in positions]
        rotations.append(Rotation([row[:num_pairs] for row in rows], [row[num_pairs:] for row in rows], inv_freq))
    return rotations


def _rope(root: Path, config: Any) -> Any:
    # Not the package's own __init__, which imports the whole of mlx-lm
    stub("mlx_lm").__path__ = [str(root)]
    remapping: Any = cut(root / "utils.py", ["MODEL_REMAPPING"], {})["MODEL_REMAPPING"]
    model_type = remapping.get(config["model_type"], config["model_type"])
    module = importlib.import_module(f"mlx_lm.models.{model_type}")
    return module.Attention(module.ModelArgs.from_dict(config)).rope
