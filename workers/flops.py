"""Floating point operations that a document's score needs, from a model's architecture alone.

A product of two matrices counts 2 operations per multiplication; norms, activations and the softmax count nothing, as
they are a thousandth of it and no device computes them with its matrix units.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from workers.trimmed import decoder_layers

KEY_VALUE = re.compile(r"(k|v|kv|key|value)(_.*)?", re.IGNORECASE)
"""Names of layers that compute keys or values."""
FUSED = re.compile(r".*(qkv|query_key_value).*", re.IGNORECASE)
"""Names of layers that compute queries, keys and values at once."""
LINEAR_WITH_GRADIENT = 2.0
"""Cost of a linear layer and its derivative by its input, in forwards: the weights are not differentiated."""
ATTENTION_WITH_GRADIENT = 3.5
"""Cost of attention and its derivative, in forwards: 2 products forward, and 5 backward, scores anew among them."""


class _PerToken(NamedTuple):
    """FLOPs of a layer's matrices for one token."""

    key_value: float
    others: float


def document_flops(model: PreTrainedModel, *, num_tokens: int, num_kept: int, with_gradient: bool = False) -> float:
    """Return the operations that the loss of the last tokens of a document needs, however a forward may spend more.

    Every layer reads every token, and every query the keys that it may see: all before it, or those of a sliding
    window. The last layer computes queries, attention, output and MLP, and the head its logits, for the last positions
    alone. Of experts, those count that a token is given to. An embedding that is looked up costs nothing, nor does
    attention in layers that are of another kind than full or sliding.

    Args:
        model: A causal LM; its weights are not read and may be on any device.
        num_tokens: Length of the document.
        num_kept: Positions at its end whose logits are wanted.
        with_gradient: Whether the loss is differentiated by what enters the layers, not by the weights.

    Returns:
        FLOPs; activations that are computed a second time to save memory are not needed and not counted.

    Raises:
        NotTrimmableError: The model's layers cannot be told.
    """
    config = model.config.get_text_config()
    layers = decoder_layers(model)
    per_token = [_per_token(layer, config) for layer in layers]
    head: nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    linear = num_tokens * (sum(key_value + others for key_value, others in per_token[:-1]) + per_token[-1].key_value)
    linear += num_kept * (per_token[-1].others + (0.0 if head is None else sum(_per_token(head, config))))
    windows = _windows(config, num_tokens)
    num_pairs = sum(_visible_pairs(num_tokens, num_tokens, window) for window in windows[:-1])
    num_pairs += _visible_pairs(num_tokens, num_kept, windows[-1])
    attention = float(_flops_per_pair(config) * num_pairs)
    if with_gradient:
        return LINEAR_WITH_GRADIENT * linear + ATTENTION_WITH_GRADIENT * attention
    return linear + attention


def _per_token(layer: nn.Module, config: PreTrainedConfig) -> _PerToken:
    key_value = others = 0.0
    for name, weight in _matrices(layer):
        flops = 2.0 * weight.numel() * _expert_share(weight, config)
        share = _key_value_share(name, weight, config)
        key_value += share * flops
        others += (1.0 - share) * flops
    return _PerToken(key_value, others)


def _matrices(layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield what tokens are multiplied with, by the name of the module that holds it."""
    for path, weight in layer.named_parameters():
        module, _, name = path.rpartition(".")
        if weight.dim() > 1 and not name.endswith("bias"):  # experts have a row of biases each
            yield module.rpartition(".")[2], weight


def _expert_share(weight: Tensor, config: PreTrainedConfig) -> float:
    """Return how many of a stack of experts a token is given to, as a share; 1 for what is no such stack."""
    num_chosen = getattr(config, "num_experts_per_tok", None)
    return int(num_chosen) / int(weight.shape[0]) if weight.dim() == 3 and num_chosen else 1.0


def _key_value_share(name: str, weight: Tensor, config: PreTrainedConfig) -> float:
    if FUSED.fullmatch(name):
        return 1.0 - float(config.num_attention_heads * _head_dims(config)[0]) / weight.shape[0]
    return 1.0 if KEY_VALUE.fullmatch(name) else 0.0


def _head_dims(config: PreTrainedConfig) -> tuple[int, int]:
    """Return the dimensions of a head's queries and of its values."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    # Latent attention has heads of more than the dimensions that rotate, which are its head_dim
    query_dim = getattr(config, "qk_head_dim", None) or head_dim
    return query_dim, getattr(config, "v_head_dim", None) or head_dim


def _flops_per_pair(config: PreTrainedConfig) -> int:
    """Return what one query and one key cost in a layer: a score and its share of the output, in every head."""
    return 2 * sum(_head_dims(config)) * int(config.num_attention_heads)


def _windows(config: PreTrainedConfig, num_tokens: int) -> list[int]:
    """Return how many keys a query sees at most, by layer."""
    sliding = getattr(config, "sliding_window", None) or num_tokens
    layer_types = getattr(config, "layer_types", None)
    if not layer_types:
        return [sliding] * config.num_hidden_layers
    return [{"full_attention": num_tokens, "sliding_attention": sliding}.get(kind, 0) for kind in layer_types]


def _visible_pairs(num_tokens: int, num_queries: int, window: int) -> int:
    """Return the pairs of a query and a key that it sees, over the last queries of a document."""
    return _causal_pairs(num_tokens, window) - _causal_pairs(num_tokens - num_queries, window)


def _causal_pairs(num_tokens: int, window: int) -> int:
    """Return min(1, window) + min(2, window) + .. + min(num_tokens, window)."""
    num_short = min(num_tokens, window)
    return num_short * (num_short + 1) // 2 + (num_tokens - num_short) * window
