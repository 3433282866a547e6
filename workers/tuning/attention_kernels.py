"""Exact causal attention inside documents that lie one after another, by whatever kernel is there.

Shapes: S tokens of all packs, pack after pack; H query heads, G key heads (H is a multiple of G), D dimensions per
head, L tokens of one document.
"""

import logging
from collections.abc import Callable
from functools import partial
from importlib import import_module
from itertools import pairwise
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from workers.attention_kernels import FLASH_PACKAGES, AttentionTerms, sdpa
from workers.tuning.attention_flex import flex

ROWS = 1024
"""Queries whose scores are held in memory at once where a kernel writes them out."""

logger = logging.getLogger(__name__)


class Documents(NamedTuple):
    """Where documents begin and end among the tokens of all packs."""

    ends: Tensor
    """Cumulative lengths from 0 to S, shape (documents + 1,), int32, beside the queries."""
    longest: int
    """Tokens of the longest document."""


PackedAttend: TypeAlias = Callable[[Tensor, Tensor, Tensor, AttentionTerms, Documents], Tensor]
"""Queries (S, H, D), keys and values (S, G, D), terms and documents in; (S, H, D) out."""


def packed_kernels(device: torch.device, dtype: torch.dtype) -> dict[str, PackedAttend]:
    """Return the kernels that may work here, by name, the preferred first; the last one always does.

    Args:
        device: Where queries, keys and values lie.
        dtype: Their precision.

    Returns:
        At least one kernel; it raises an error of its own where it cannot.
    """
    if device.type != "cuda":
        return {"documents": documents}
    found: dict[str, PackedAttend] = {}
    if dtype in (torch.bfloat16, torch.float16):
        packages = {name: _flash_function(name, module) for name, module in FLASH_PACKAGES.items()}
        found = {name: function for name, function in packages.items() if function is not None} | {"varlen": varlen}
    return found | {"flex": flexible, "documents": documents}


def documents(query_SHD: Tensor, key_SGD: Tensor, value_SGD: Tensor, terms: AttentionTerms, where: Documents) -> Tensor:
    """Return attention document by document: exact, and without a mask over documents.

    On a CPU one product under a mask of S x S took 5 times as long for 16 documents of 32 tokens, and was faster for
    those of 4 tokens alone. Windows are masked a piece of the queries at a time. Scores with a cap or sinks are written
    out for a piece of the queries at a time, and again in the backward pass.

    Args:
        query_SHD, key_SGD, value_SGD: Queries, keys and values.
        terms: The layer's.
        where: The documents.

    Returns:
        Attention output, shape (S, H, D).
    """
    # The products take (1, heads, L, D)
    query, key, value = (part.transpose(0, 1)[None] for part in (query_SHD, key_SGD, value_SGD))
    parts = []
    for start, end in pairwise(where.ends.tolist()):
        if end > start:
            one = slice(start, end)
            parts.append(_one_document(query[:, :, one], key[:, :, one], value[:, :, one], terms))
    return torch.cat(parts)


def flexible(query_SHD: Tensor, key_SGD: Tensor, value_SGD: Tensor, terms: AttentionTerms, where: Documents) -> Tensor:
    """Return attention by torch's flex attention, which skips blocks of 128 x 128 tokens without a common document.

    Args:
        query_SHD, key_SGD, value_SGD, terms, where: As `documents`.

    Returns:
        Attention output, shape (S, H, D).
    """
    return flex(query_SHD, key_SGD, value_SGD, terms, where.ends)


def varlen(query_SHD: Tensor, key_SGD: Tensor, value_SGD: Tensor, terms: AttentionTerms, where: Documents) -> Tensor:
    """Return attention by the flash kernel for documents of several lengths that comes with torch.

    Args:
        query_SHD, key_SGD, value_SGD, where: As `documents`, on CUDA in half precision.
        terms: The layer's, without cap and sinks.

    Returns:
        Attention output, shape (S, H, D).

    Raises:
        ValueError: Scores have a cap or sinks.
    """
    from torch.nn.attention.varlen import varlen_attn

    _refuse(terms, "torch's varlen attention", sinks=True, softcap=True)
    ends, longest = where
    found = varlen_attn(
        *(query_SHD, key_SGD, value_SGD, ends, ends, longest, longest),
        scale=terms.scale,
        window_size=(-1 if terms.window is None else terms.window - 1, 0),
        enable_gqa=query_SHD.shape[1] > key_SGD.shape[1],
    )
    assert isinstance(found, Tensor)  # a pair only where the logarithms are asked for
    return found


def _one_document(query_1HLD: Tensor, key_1GLD: Tensor, value_1GLD: Tensor, terms: AttentionTerms) -> Tensor:
    """Return a document's attention, shape (L, H, D)."""
    length = query_1HLD.shape[2]
    attend = partial(sdpa, terms=terms)
    if (terms.softcap is None and terms.sinks is None) or length <= ROWS or not torch.is_grad_enabled():
        return attend(query_1HLD, key_1GLD, value_1GLD)[0]
    parts = []
    for start in range(0, length, ROWS):
        end = min(start + ROWS, length)
        seen = slice(max(0, start - (terms.window or length) + 1), end)
        piece = (query_1HLD[:, :, start:end], key_1GLD[:, :, seen], value_1GLD[:, :, seen])
        parts.append(checkpoint(attend, *piece, use_reentrant=False)[0])
    return torch.cat(parts)


def _flash_function(name: str, module: str) -> PackedAttend | None:
    """Return attention by a package of the flash-attn family; None where it is not there or cannot be loaded."""
    try:
        function = import_module(module).flash_attn_varlen_func
    except (ImportError, OSError, AttributeError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        logger.info("packed attention by %s is not used: %s", name, reason)
        return None

    def flash(query_SHD: Tensor, key_SGD: Tensor, value_SGD: Tensor, terms: AttentionTerms, where: Documents) -> Tensor:
        _refuse(terms, name, sinks=True)
        options: dict[str, object] = {"softmax_scale": terms.scale, "causal": True}
        if terms.window is not None and terms.window < where.longest:
            options["window_size"] = (terms.window - 1, 0)
        if terms.softcap is not None:
            options["softcap"] = terms.softcap
        ends, longest = where
        options |= {"cu_seqlens_q": ends, "cu_seqlens_k": ends, "max_seqlen_q": longest, "max_seqlen_k": longest}
        # Latent attention has values of fewer dimensions than its keys
        num_lacking = query_SHD.shape[-1] - value_SGD.shape[-1]
        value = functional.pad(value_SGD, (0, num_lacking)) if num_lacking else value_SGD
        found = function(query_SHD, key_SGD, value, **options)
        out_SHD: Tensor = found[0] if isinstance(found, tuple) else found
        return out_SHD[..., : value_SGD.shape[-1]]

    return flash


def _refuse(terms: AttentionTerms, name: str, *, sinks: bool = False, softcap: bool = False) -> None:
    if sinks and terms.sinks is not None:
        raise ValueError(f"scores must have no sinks for {name}, got some. Use another kernel.")
    if softcap and terms.softcap is not None:
        raise ValueError(f"scores must have no cap for {name}, got one. Use another kernel.")
