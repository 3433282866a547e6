"""Forwards of tiny models, plain and trimmed."""

import copy
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from tests.workers.architectures import REFUSED, TRIMMABLE
from workers.attention import PREFIX, register
from workers.attention_kernels import AttentionTerms, plain, sdpa
from workers.trimmed import Trim, trimmed_forward

NUM_TOKENS, NUM_KEPT = 128, 9
SDPA = PREFIX + "sdpa"
CPU = torch.device("cpu")
# Rounding of float32, 2^-24, over the some ten sums of up to 128 terms that kernels and pieces take in another order
TOLERANCE = 1e-5


def upper_left(query: Tensor, key: Tensor, value: Tensor, terms: AttentionTerms) -> Tensor:
    """Attention with the mask of torch's `is_causal`: wrong where there are fewer queries than keys."""
    attend = partial(functional.scaled_dot_product_attention, is_causal=True, enable_gqa=True)
    return attend(query, key, value, scale=terms.scale).transpose(1, 2)


register({"sdpa": sdpa, "plain": plain, "upper left": upper_left})


def from_config(config: PreTrainedConfig) -> PreTrainedModel:
    """A model with transformers' own eager attention; its random weights depend on its shapes alone."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")  # type: ignore[no-untyped-call]
    model.eval()
    assert isinstance(model, PreTrainedModel)
    return model


def make_model(name: str) -> PreTrainedModel:
    """The tiny model of an architecture."""
    return from_config((TRIMMABLE | REFUSED)[name]())


tiny = cache(make_model)
"""Not to be changed."""


def llama_of_three_layers() -> PreTrainedModel:
    """One layer is neither the first nor the last."""
    config = TRIMMABLE["llama"]()
    config.num_hidden_layers = 3
    config.initializer_range = 0.1  # attention that is less sharp, since each layer amplifies the rounding before it
    return from_config(config)


def ids(num_documents: int = 2, num_tokens: int = NUM_TOKENS) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (num_documents, num_tokens), generator=generator)


def trimmed(model: PreTrainedModel, piece_length: int, *, num_kept: int = NUM_KEPT, attention: str = SDPA) -> Any:
    return trimmed_forward(model, Trim(num_kept=num_kept, piece_length=piece_length), attention=attention)


@torch.inference_mode()
def plain_logits(model: PreTrainedModel, input_ids: Tensor, num_kept: int = NUM_KEPT) -> Tensor:
    logits: Tensor = model(input_ids=input_ids, use_cache=False).logits
    return logits[:, -num_kept:]


@torch.inference_mode()
def trimmed_logits(
    model: PreTrainedModel, input_ids: Tensor, piece_length: int, *, num_kept: int = NUM_KEPT, attention: str = SDPA
) -> Tensor:
    with trimmed(model, piece_length, num_kept=num_kept, attention=attention):
        logits: Tensor = model(input_ids=input_ids, use_cache=False).logits
    return logits


def agree(found: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> bool:
    return found.shape == expected.shape and bool((found - expected).abs().max() <= tolerance * expected.abs().max())


def state(model: PreTrainedModel) -> tuple[object, ...]:
    attributes = [{name: id(value) for name, value in vars(module).items()} for module in model.modules()]
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    return attributes, hooks, copy.deepcopy(model.config.to_dict()), model.config._attn_implementation
