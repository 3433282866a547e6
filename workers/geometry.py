"""What a model's configuration says about its rotary embedding: rotated dimensions, base, original window."""

from collections.abc import Mapping
from typing import NamedTuple

from transformers import PreTrainedConfig

FULL_ATTENTION = "full_attention"
"""The layer type whose rotation is rescaled where a model has one per layer type; sliding windows never grow."""


class RopeGeometry(NamedTuple):
    """The rotary embedding that rescale factors are relative to: the model's own, without any scaling."""

    rotary_dim: int
    """Rotated dimensions per head; twice the number of frequency pairs."""
    base: float
    """RoPE base; pair i turns by 1 / base^(2i / rotary_dim) radians per token before any scaling."""
    original_length: int
    """Pre-training window, tokens."""
    native_scaling: str = "default"
    """The scaling that the model was saved with (`rope_type`); "default" is none."""
    partial_rotary_factor: float | None = None
    """Share of each head that rotates, where it is not all of it."""
    by_layer_type: bool = False
    """Whether other layers than those of full attention have a rotation of their own."""


def rope_geometry(config: PreTrainedConfig, *, original_length: int | None = None) -> RopeGeometry:
    """Return the rotary geometry of any Hugging Face configuration.

    Reads an explicit head_dim, partial_rotary_factor at the top or inside `rope_parameters`, `rope_parameters` and the
    older `rope_theta` with `rope_scaling` alike (transformers turns those into the former), and of parameters nested
    by layer type those of full attention. A scaling that the model was saved with does not enter rotary_dim or base.

    Args:
        config: The model's configuration; of a multimodal model its text part is read.
        original_length: Pre-training window in tokens, where the user knows better than the configuration.

    Returns:
        The geometry; `original_length` is the argument, else original_max_position_embeddings (at the top, else in the
        rope parameters), else max_position_embeddings.

    Raises:
        ValueError: The model does not rotate or has no full-attention rotation, original_length is below 1, or neither
            it nor the configuration says the window.
    """
    config = config.get_text_config()
    parameters = _rope_parameters(config)
    if original_length is not None and original_length < 1:
        raise ValueError(f"--original-length must be at least 1 token, got {original_length}. Correct it.")
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    share = parameters.get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None) or 1.0
    return RopeGeometry(
        rotary_dim=int(head_dim * share),
        base=float(parameters["rope_theta"]),
        original_length=original_length or _original_length(config, parameters),
        native_scaling=str(parameters.get("rope_type", "default")),
        partial_rotary_factor=None if share == 1.0 else share,
        by_layer_type=bool(_layer_types(config)),
    )


def _rope_parameters(config: PreTrainedConfig) -> Mapping[str, float]:
    parameters = getattr(config, "rope_parameters", None) or {}
    layer_types = _layer_types(config)
    if layer_types:
        parameters = parameters.get(FULL_ATTENTION) or {}
    if parameters.get("rope_theta") is None:
        found = f"rotations for {', '.join(layer_types)} only" if layer_types else "no rope_parameters"
        raise ValueError(
            f"the model must have rotary position embeddings (RoPE) in its full-attention layers, got a "
            f"{config.model_type} configuration with {found}. Choose another model."
        )
    return dict(parameters)


def _layer_types(config: PreTrainedConfig) -> list[str]:
    parameters = getattr(config, "rope_parameters", None) or {}
    return [name for name, value in parameters.items() if isinstance(value, Mapping)]


def unknown_window(name: str) -> ValueError:
    """Return the error that says which flag sets the original window.

    Args:
        name: What does not say it.

    Returns:
        The error, for the caller to raise.
    """
    return ValueError(
        f"the original window must be known, got none from the configuration of {name}. "
        "Give the pre-training window in tokens with --original-length."
    )


def _original_length(config: PreTrainedConfig, parameters: Mapping[str, float]) -> int:
    for length in (
        getattr(config, "original_max_position_embeddings", None),
        parameters.get("original_max_position_embeddings"),
        getattr(config, "max_position_embeddings", None),
    ):
        if length:
            return int(length)
    raise unknown_window(f"a {config.model_type} model")
