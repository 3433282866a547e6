"""vLLM's rotation: its LongRoPE class and `get_rope`, and its own way from command line to rope parameters.

The class's file imports vllm.config, vllm.logger and rotate_neox, stubbed here; the rest is cut out of its files.
"""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import PreTrainedConfig

from workers.parity.model_config import head_dim, read_config
from workers.parity.probe import Probe, Rotation
from workers.parity.source import cut, load_file, stub
from workers.parity.torch_rotation import rotate_neox, rotation_of

PACKAGE = "model_executor/layers/rotary_embedding"


def rotate(probe: Probe) -> list[Rotation]:
    """Return what vLLM rotates by when it is started with --max-model-len `server_length`.

    Args:
        probe: What it is asked; `overrides` are those of --hf-overrides.

    Returns:
        One rotation per input.
    """
    root = Path(probe.root)
    config = _overridden(root, probe)
    parameters: dict[str, Any] = config.rope_parameters
    long_class = _long_rope_class(root / PACKAGE, probe.server_length)
    known = {"Any": Any, "torch": torch, "_ROPE_DICT": {}, "Phi3LongRoPEScaledRotaryEmbedding": long_class}
    get_rope: Any = cut(root / PACKAGE / "__init__.py", ["get_rope"], known)["get_rope"]
    size = head_dim(config)
    module = get_rope(size, config.max_position_embeddings, rope_parameters=parameters, dtype=torch.float32)
    return [rotation_of(module, positions, head_dim=size, rotary_dim=module.rotary_dim) for positions in probe.inputs]


def _overridden(root: Path, probe: Probe) -> PreTrainedConfig:
    """Return the configuration as vLLM has it: flat overrides before its patch of rope parameters, dicts after it."""
    config = read_config(probe.config)
    nested = {key: value for key, value in probe.overrides.items() if isinstance(value, dict)}
    config.update({key: value for key, value in probe.overrides.items() if key not in nested})
    known = {
        "logger": _Silent(),
        "math": math,
        "ALLOWED_LAYER_TYPES": {"full_attention", "sliding_attention"},
        "PretrainedConfig": PreTrainedConfig,
        "Any": Any,
    }
    stub("vllm")
    stub("vllm.config")
    stub("vllm.config.utils", getattr_iter=_first_attribute)
    names = ["is_rope_parameters_nested", "patch_legacy_rope_type", "patch_rope_parameters", "iter_rope_parameters"]
    patch: Any = cut(root / "transformers_utils/config.py", names, known)["patch_rope_parameters"]
    apply: Any = cut(root / "config/model.py", ["_apply_dict_overrides"], known, inside="ModelConfig")
    patch(config)
    apply["_apply_dict_overrides"](SimpleNamespace(), config, nested)
    return config


def _long_rope_class(folder: Path, server_length: int) -> type[torch.nn.Module]:
    settings = SimpleNamespace(model_config=SimpleNamespace(max_model_len=server_length))
    stub("vllm.logger", init_logger=lambda name: _Silent())
    stub("vllm.config", get_current_vllm_config=lambda: settings)
    stub("vllm_rotary").__path__ = [str(folder)]
    stub("vllm_rotary.common", rotate_neox=rotate_neox)
    module = load_file(folder / "phi3_long_rope_scaled_rope.py", "vllm_rotary.phi3_long_rope_scaled_rope")
    long_class: type[torch.nn.Module] = module.Phi3LongRoPEScaledRotaryEmbedding
    return long_class


def _first_attribute(owner: object, names: list[str], default: object, warn: bool = False) -> object:
    return next((getattr(owner, name) for name in names if hasattr(owner, name)), default)


class _Silent:
    """A logger that says nothing."""

    def __getattr__(self, name: str) -> object:
        return lambda *args, **kwargs: None
