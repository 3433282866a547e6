"""A model's configuration as an engine's own transformers reads it."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import AutoConfig

if TYPE_CHECKING:
    from transformers import PreTrainedConfig  # version 4, which may be asked too, spells it otherwise


def read_config(config: Mapping[str, object]) -> "PreTrainedConfig":
    """Return what transformers makes of a config.json.

    Args:
        config: What the file holds.

    Returns:
        The configuration.

    Raises:
        ValueError: transformers knows no such architecture.
    """
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(config), encoding="utf-8")
        read: PreTrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True)
        return read


def head_dim(config: "PreTrainedConfig") -> int:
    """Return the dimensions of one head, as engines compute them."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def made_up_config(architecture: str, *, rotary_dim: int, base: float, original_length: int) -> dict[str, object]:
    """Return the config.json of a model that does not exist, for factors without a model.

    Args:
        architecture: llama or phi3.
        rotary_dim: Rotated dimensions of each head, all of it.
        base: RoPE base.
        original_length: Its window, tokens.

    Returns:
        A configuration of one layer and two heads.
    """
    return {
        "architectures": [f"{architecture.capitalize()}ForCausalLM"],
        "model_type": architecture,
        "hidden_size": 2 * rotary_dim,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 64,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-6,
        "rope_theta": base,
        "max_position_embeddings": original_length,
        **(
            {"original_max_position_embeddings": original_length}
            if architecture == "phi3"
            else {"head_dim": rotary_dim}
        ),
    }
