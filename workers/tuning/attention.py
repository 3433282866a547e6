"""Packed attention: documents that lie one after another in a pack attend to themselves alone.

Shapes: B packs, T tokens of each, S tokens of all packs (B * T); H query heads, G key heads, D dimensions per head; E
boundaries of documents; V vocabulary.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from workers.attention import PREFIX, attention_implementation, attention_shape, is_plain, make_known
from workers.attention_kernels import AttentionTerms
from workers.tuning.attention_kernels import Documents, PackedAttend, packed_kernels
from workers.tuning.attention_probe import kernel_refusal, model_refusal, probe_packs, window_refusal
from workers.tuning.packs import Pack

PACKED = f"{PREFIX}packed "
"""What the names of our packed kernels begin with among transformers' attention implementations."""

SEVERAL = ((40, 23, 1), (64,))
"""Tokens of the documents of two packs on which a model is compared with itself."""

logger = logging.getLogger(__name__)


class PackedInputs(TypedDict):
    """What a model is called with; all tensors on one device."""

    input_ids: Tensor
    """Token ids, shape (B, T), int64."""
    position_ids: Tensor
    """Positions, restarting with each document that attends to itself alone, shape (B, T), int64."""
    labels: Tensor
    """Token ids where they are scored and -100 elsewhere, not shifted, shape (B, T), int64."""
    cu_seq_lens_q: Tensor
    """Boundaries of the documents of all packs from 0 to B * T, shape (documents + 1,), int32."""
    cu_seq_lens_k: Tensor
    """The same tensor."""
    max_length_q: int
    """Tokens of the longest document."""
    max_length_k: int
    """The same."""
    use_cache: bool
    """False."""


def packed_inputs(packs: Sequence[Pack], device: torch.device) -> PackedInputs:
    """Return what a model with packed attention is called with.

    Args:
        packs: Packs of one length.
        device: Where the model's embedding lies.
    """
    length = len(packs[0].token_ids)
    starts = [np.asarray(pack.starts[:-1], dtype=np.int64) + number * length for number, pack in enumerate(packs)]
    ends = np.append(np.concatenate(starts), len(packs) * length)
    ends_E = torch.from_numpy(ends.astype(np.int32)).to(device)
    longest = int(np.diff(ends).max())
    input_ids_BT, position_ids_BT, labels_BT = (
        torch.from_numpy(np.stack(rows).astype(np.int64)).to(device)
        for rows in (
            [pack.token_ids for pack in packs],
            [pack.position_ids for pack in packs],
            [pack.labels for pack in packs],
        )
    )
    return PackedInputs(
        input_ids=input_ids_BT,
        position_ids=position_ids_BT,
        labels=labels_BT,
        cu_seq_lens_q=ends_E,
        cu_seq_lens_k=ends_E,
        max_length_q=longest,
        max_length_k=longest,
        use_cache=False,
    )


def choose_packed_attention(model: PreTrainedModel, *, dtype: torch.dtype | None = None) -> str:
    """Make a model attend inside the documents of its packs, by the first kernel that agrees here.

    From then on the model is called with `packed_inputs` only. Kernels are compared with attention's definition,
    output and gradients, and the model with itself on documents alone.

    Args:
        model: A causal LM on its device, not yet wrapped.
        dtype: Precision of its activations in training, by autocast; None for that of its weights.

    Returns:
        The kernel's name: of flash-attn, varlen (torch's own), flex, or documents (one after another).

    Raises:
        ValueError: The model drops attention weights at random, or does not read documents in a pack as it reads
            each alone, with the reason.
    """
    config, name = model.config.get_text_config(), type(model).__name__
    if getattr(config, "attention_dropout", 0.0):
        raise ValueError(
            f"attention_dropout must be 0 for packed attention, got {config.attention_dropout}. Set it to 0 in the "
            "model's config.json."
        )
    device, dtype = next(model.parameters()).device, dtype or model.dtype
    found = packed_kernels(device, dtype)
    register_packed(found)
    for kernel, attend in found.items():
        if kernel != list(found)[-1] and (refusal := _kernel_refusal(attend, model, device, dtype)):
            logger.warning("packed attention by %s is not used: %s", kernel, refusal)
            continue
        if refusal := _model_refusal(model, kernel, attend, device, dtype):
            raise ValueError(
                f"{name} must read the documents of a pack as it reads each alone, got otherwise: {refusal}. Choose "
                "another model."
            )
        model.set_attn_implementation(PACKED + kernel)
        logger.info("packed attention by %s", kernel)
        return kernel
    raise AssertionError


def register_packed(found: Mapping[str, PackedAttend]) -> None:
    """Make kernels known to transformers, as implementations named `PACKED` and their names.

    Args:
        found: Kernels by name.
    """
    for name, attend in found.items():
        make_known(PACKED + name, partial(_forward, attend))


def _forward(
    attend: PackedAttend,
    module: nn.Module,
    query_BHTD: Tensor,
    key_BGTD: Tensor,
    value_BGTD: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Attend as transformers asks for it."""
    if not is_plain(module, attention_mask, dropout, is_causal):
        raise ValueError("packed attention must be causal, without padding and dropout, got otherwise. Use another.")
    if cu_seq_lens_q is None or max_length_q is None:
        raise ValueError(
            f"{type(module).__name__} must be told the documents of its packs, got no cu_seq_lens_q and max_length_q. "
            "Call the model with packed_inputs."
        )
    num_packs, num_tokens, device = len(query_BHTD), query_BHTD.shape[2], query_BHTD.device
    if torch.is_autocast_enabled(device.type):  # rotation by float32 cosines undoes it
        dtype = torch.get_autocast_dtype(device.type)
        query_BHTD, key_BGTD, value_BGTD = (part.to(dtype) for part in (query_BHTD, key_BGTD, value_BGTD))
    scale = query_BHTD.shape[-1] ** -0.5 if scaling is None else scaling
    terms = AttentionTerms(scale, sliding_window, softcap, s_aux)
    query, key, value = (part.transpose(1, 2).flatten(0, 1) for part in (query_BHTD, key_BGTD, value_BGTD))
    where = Documents(cu_seq_lens_q.to(device), int(max_length_q))
    out_SHD = attend(query, key, value, terms, where)
    return out_SHD.view(num_packs, num_tokens, *out_SHD.shape[1:]), None


def _kernel_refusal(attend: PackedAttend, model: PreTrainedModel, device: torch.device, dtype: torch.dtype) -> str:
    has_sinks = any(name.endswith("sinks") for name, _ in model.named_parameters())
    return kernel_refusal(attend, attention_shape(model.config), has_sinks=has_sinks, device=device, dtype=dtype)


@torch.no_grad()
def _model_refusal(
    model: PreTrainedModel, kernel: str, attend: PackedAttend, device: torch.device, dtype: torch.dtype
) -> str:
    """Return why a model cannot read packs with a kernel; its attention and mode are as before afterwards."""
    vocab_size = model.config.get_text_config().vocab_size
    several, one = (packed_inputs(probe_packs(vocab_size, lengths), device) for lengths in (SEVERAL, ((64,),)))
    own, was_training = model.config._attn_implementation, model.training
    plain = attention_implementation(type(model), device, dtype)
    autocast = nullcontext() if dtype == model.dtype else torch.autocast(device.type, dtype)
    try:
        model.eval()  # type: ignore[no-untyped-call]
        model.set_attn_implementation(PACKED + kernel)
        with autocast:
            return window_refusal(model, partial(_forward, attend), one) or model_refusal(model, several, plain)
    finally:
        model.set_attn_implementation(own)
        model.train(was_training)
