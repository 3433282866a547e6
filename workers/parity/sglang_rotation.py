"""SGLang's rotation: its LongRoPE class and `get_rope`, and its own merge of overrides, cut out of its files.

The files import SGLang's kernels; the definitions need torch alone.
"""

import logging
import math
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple, Union  # noqa: UP035 - names that the cut code uses

import torch
from torch import nn
from transformers import PreTrainedConfig

from workers.parity.model_config import head_dim, read_config
from workers.parity.probe import Probe, Rotation
from workers.parity.source import block, cut, run
from workers.parity.torch_rotation import rotate_neox, rotation_of

TYPING = {"Any": Any, "Dict": Dict, "List": List, "Optional": Optional, "Tuple": Tuple, "Union": Union}  # noqa: UP006
KEEPS_INNER_LENGTH = ("qwen2", "qwen3", "minicpm")
"""Models whose code does not copy the original length from the top of the configuration into the rope parameters."""


def rotate(probe: Probe) -> list[Rotation]:
    """Return what SGLang rotates by.

    Args:
        probe: What it is asked; `overrides` are those of --json-model-override-args.

    Returns:
        One rotation per input, each a batch of its own.
    """
    root = Path(probe.root, "srt")
    config = _overridden(root, probe)
    known = {**TYPING, "get_text_config": lambda config: config}
    reading: Any = cut(root / "utils/hf_transformers/common.py", ["get_rope_config"], known)["get_rope_config"]
    base, scaling = reading(config)
    original = getattr(config, "original_max_position_embeddings", None)
    if scaling is not None and original and config.model_type not in KEEPS_INNER_LENGTH:
        scaling["original_max_position_embeddings"] = original
    size = head_dim(config)
    module = _get_rope(root / "layers/rotary_embedding")(
        size,
        rotary_dim=size,
        max_position=config.max_position_embeddings,
        base=base,
        rope_scaling=scaling,
        dtype=torch.float32,
        partial_rotary_factor=probe.rotary_dim / size,
    )
    return [rotation_of(module, positions, head_dim=size, rotary_dim=probe.rotary_dim) for positions in probe.inputs]


def _overridden(root: Path, probe: Probe) -> PreTrainedConfig:
    path = root / "utils/hf_transformers/config.py"
    known = {
        "config": read_config(probe.config),
        "model_override_args": dict(probe.overrides),
        "PretrainedConfig": PreTrainedConfig,
        "DeepseekV41Config": (),  # of no model that rotates by these factors
    }
    config: PreTrainedConfig = run(block(path, "get_config", "model_override_args"), path, known)["config"]  # type: ignore[assignment]
    return config


def _get_rope(folder: Path) -> Any:
    name = "Phi3LongRoPEScaledRotaryEmbedding"
    known = {**TYPING, "math": math, "torch": torch, "nn": nn, "rotate_neox": rotate_neox}
    long_class = cut(folder / "rope_variant.py", [name], known)[name]
    names = ["get_rope", "_get_rope_param", "_get_live_rope_cache_entry"]
    known = {**TYPING, "torch": torch, "_ROPE_DICT": {}, "logger": logging.getLogger(__name__), name: long_class}
    return cut(folder / "factory.py", names, known)["get_rope"]
