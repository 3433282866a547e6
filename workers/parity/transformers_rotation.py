"""transformers' rotation: the rotary module of the model's own class, built from config.json."""

import copy
import importlib
from collections.abc import Mapping
from typing import Any

import torch

from workers.parity.model_config import read_config
from workers.parity.probe import Probe, Rotation


def rotate(probe: Probe) -> list[Rotation]:
    """Return what transformers rotates by; one module reads all inputs, as in a process that serves.

    Args:
        probe: What it is asked.

    Returns:
        One rotation per input.
    """
    module = _rotary_module(read_config(probe.config))
    num_pairs = probe.rotary_dim // 2
    rotations = []
    for positions in probe.inputs:
        cos_BTD, sin_BTD = module(torch.zeros(1), torch.tensor([positions]))
        rotations.append(Rotation(cos_BTD[0, :, :num_pairs].tolist(), sin_BTD[0, :, :num_pairs].tolist()))
    return rotations


def own_rotation(config: Mapping[str, object], num_tokens: int) -> tuple[list[float], float]:
    """Return what a model rotates by as it is, in this process.

    Args:
        config: Its config.json.
        num_tokens: Length of the input.

    Returns:
        Inverse frequencies in radians per token, shape (P,), and what multiplies cos and sin.
    """
    module: Any = _rotary_module(read_config(config))
    module(torch.zeros(1), torch.arange(num_tokens)[None])
    return module.inv_freq.tolist(), float(module.attention_scaling)


def _rotary_module(config: Any) -> torch.nn.Module:
    """Return the model's rotary module: that of a model without weights and of one layer tells its class."""
    small = copy.deepcopy(config)
    small.num_hidden_layers = 1
    if getattr(small, "layer_types", None):
        small.layer_types = small.layer_types[:1]
    auto: Any = importlib.import_module("transformers").AutoModelForCausalLM
    with torch.device("meta"):
        model = auto.from_config(small)
    rotary = next(module for module in model.modules() if hasattr(module, "inv_freq"))
    module: torch.nn.Module = type(rotary)(config=config)
    return module
