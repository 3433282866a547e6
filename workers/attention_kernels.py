"""Exact causal attention of a piece of queries to all keys so far, by whatever kernel is there.

Shapes: B documents, Q queries, K keys, H query heads, G key heads (H is a multiple of G), D dimensions per head. The
queries are those of the last Q of the K positions: query number i sees the keys up to K - Q + i.
"""

import logging
import math
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.bias import causal_lower_right

from workers.precision import CPU_INFO, cpu_instructions

MOST_SCORES = 2**25
"""Scores that are held in memory at once where a kernel does not avoid them: 128 MiB in float32."""
MOST_MASKED_QUERIES = 1024
"""Queries for which a mask is written out at once where a kernel needs one."""

MIN_CUDNN_QUERIES = 128
"""Queries from which cuDNN's kernel is used."""
MIN_PRODUCT_QUERIES, MOST_PRODUCT_QUERIES = 32, 64
"""Queries from which plain products are used, and those of one product."""
MOST_CACHED_SCORES = 2**24
"""Scores of one product, fewer queries at a time where there are many keys: they should stay near the processor."""
FLASH_PACKAGES = {
    "flash-attn 4": "flash_attn.cute",
    "flash-attn 3": "flash_attn_interface",
    "flash-attn 2": "flash_attn",
}
"""Modules that have a flash_attn_func with the same first arguments."""

logger = logging.getLogger(__name__)


class AttentionTerms(NamedTuple):
    """What a layer asks of its attention, beside queries, keys and values."""

    scale: float
    """What scores are multiplied by."""
    window: int | None = None
    """Keys that a query sees at most, itself among them; None for all before it."""
    softcap: float | None = None
    """Scores become softcap * tanh(score / softcap); None for no cap."""
    sinks: Tensor | None = None
    """A score per query head, shape (H,), that takes part in the softmax and has no value; None for none."""


Attend: TypeAlias = Callable[[Tensor, Tensor, Tensor, AttentionTerms], Tensor]
"""Queries (B, H, Q, D), keys and values (B, G, K, D) and terms in; (B, Q, H, D) out."""


def kernels(device: torch.device, dtype: torch.dtype) -> dict[str, Attend]:
    """Return the kernels that may work here, by name, the usually fastest first; the last one always does.

    Args:
        device: Where queries, keys and values lie.
        dtype: Their precision.

    Returns:
        At least one kernel; it raises an error of its own where it cannot.
    """
    if device.type == "cpu" and dtype == torch.bfloat16 and _products_pay():
        return {"products": products}  # not by time, which a busy CPU tells otherwise every day
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return {"sdpa": sdpa}
    flash = {name: _flash_function(name, module) for name, module in FLASH_PACKAGES.items()}
    return {name: function for name, function in flash.items() if function is not None} | {"cudnn": cudnn, "sdpa": sdpa}


def plain(query_BHQD: Tensor, key_BGKD: Tensor, value_BGKD: Tensor, terms: AttentionTerms) -> Tensor:
    """Return attention by its definition, some queries at a time; what every kernel is compared with.

    Args:
        query_BHQD, key_BGKD, value_BGKD: Queries, keys and values.
        terms: The layer's.

    Returns:
        Attention output, shape (B, Q, H, D).
    """
    num_documents, num_heads, num_queries, _ = query_BHQD.shape
    num_keys = key_BGKD.shape[2]
    num_key_heads = key_BGKD.shape[1]
    grouped = query_BHQD.view(num_documents, num_key_heads, num_heads // num_key_heads, num_queries, -1)
    parts = []
    most = max(1, MOST_SCORES // (num_documents * num_heads * num_keys))
    for rows, seen in _blocks(num_queries, num_keys, terms.window, most):
        queries = grouped[..., rows, :]
        # The heads of a group are rows of one product: broadcast over them, the keys would be copied for each
        scores = queries.flatten(2, 3) @ key_BGKD[:, :, seen].transpose(-1, -2) * terms.scale
        scores = scores.view(*queries.shape[:-1], -1)
        if terms.softcap is not None:
            scores = terms.softcap * torch.tanh(scores / terms.softcap)
        mask_QK = _mask(rows, seen, num_keys - num_queries, terms.window, scores.device)
        scores = scores.float().masked_fill(~mask_QK, -math.inf)
        if terms.sinks is not None:
            sinks = terms.sinks.float().view(1, num_key_heads, -1, 1, 1)
            scores = torch.cat((scores, sinks.expand(*scores.shape[:-1], 1)), dim=-1)
        weights = scores.softmax(dim=-1)[..., : seen.stop - seen.start].to(value_BGKD.dtype)
        parts.append((weights.flatten(2, 3) @ value_BGKD[:, :, seen]).view(*queries.shape[:-1], -1))
    return torch.cat(parts, dim=-2).flatten(1, 2).transpose(1, 2)


def sdpa(query_BHQD: Tensor, key_BGKD: Tensor, value_BGKD: Tensor, terms: AttentionTerms) -> Tensor:
    """Return attention by torch's scaled_dot_product_attention, which has a kernel for every device.

    Scores with a cap or sinks are beyond it and are computed by `plain`. A sliding window reads no keys before it.

    Args:
        query_BHQD, key_BGKD, value_BGKD: Queries, keys and values.
        terms: The layer's.

    Returns:
        Attention output, shape (B, Q, H, D).
    """
    if terms.softcap is not None or terms.sinks is not None:
        return plain(query_BHQD, key_BGKD, value_BGKD, terms)
    num_queries, num_keys = query_BHQD.shape[2], key_BGKD.shape[2]
    windowed = terms.window is not None and terms.window < num_keys
    group_size = query_BHQD.shape[1] // key_BGKD.shape[1]
    if group_size > 1 and query_BHQD.is_cuda and (windowed or query_BHQD.dtype == torch.float32):
        # Of torch's kernels on CUDA, flash attention alone knows groups, and it knows neither masks nor float32
        key_BGKD, value_BGKD = (part.repeat_interleave(group_size, dim=1) for part in (key_BGKD, value_BGKD))
        group_size = 1
    attend = partial(functional.scaled_dot_product_attention, scale=terms.scale, enable_gqa=group_size > 1)
    if num_queries == num_keys and not windowed:
        return attend(query_BHQD, key_BGKD, value_BGKD, is_causal=True).transpose(1, 2)
    if not windowed and query_BHQD.is_cuda:
        bias = causal_lower_right(num_queries, num_keys)
        return attend(query_BHQD, key_BGKD, value_BGKD, bias).transpose(1, 2)
    parts = []
    for rows, seen in _blocks(num_queries, num_keys, terms.window, MOST_MASKED_QUERIES):
        mask_QK = _mask(rows, seen, num_keys - num_queries, terms.window, query_BHQD.device)
        parts.append(attend(query_BHQD[:, :, rows], key_BGKD[:, :, seen], value_BGKD[:, :, seen], mask_QK))
    return torch.cat(parts, dim=2).transpose(1, 2)


def products(query_BHQD: Tensor, key_BGKD: Tensor, value_BGKD: Tensor, terms: AttentionTerms) -> Tensor:
    """Return attention by plain matrix products, for CPUs that multiply bfloat16 much faster than torch's own kernel.

    Scores are rounded to the precision of the keys before the softmax, as in transformers' eager attention.

    Args:
        query_BHQD, key_BGKD, value_BGKD: Queries, keys and values.
        terms: The layer's; windows narrower than the keys, caps, sinks, few queries and gradients go to `sdpa`.

    Returns:
        Attention output, shape (B, Q, H, D).
    """
    (num_documents, num_heads, num_queries, _), num_keys = query_BHQD.shape, key_BGKD.shape[2]
    is_special = (terms.window or num_keys) < num_keys or terms.softcap is not None or terms.sinks is not None
    if is_special or num_queries < MIN_PRODUCT_QUERIES or torch.is_grad_enabled():
        return sdpa(query_BHQD, key_BGKD, value_BGKD, terms)
    group_size = num_heads // key_BGKD.shape[1]
    keys, values = (part.flatten(0, 1).contiguous() for part in (key_BGKD, value_BGKD))
    out_BQHD = query_BHQD.new_empty(num_documents, num_queries, num_heads, value_BGKD.shape[-1])
    most = max(16, min(MOST_PRODUCT_QUERIES, MOST_CACHED_SCORES // (num_documents * num_heads * num_keys)))
    room = query_BHQD.new_empty(num_documents * num_heads * min(most, num_queries) * num_keys)
    for rows, seen in _blocks(num_queries, num_keys, None, most):
        num_rows = rows.stop - rows.start
        queries = (query_BHQD[:, :, rows] * terms.scale).reshape(len(keys), group_size * num_rows, -1)
        scores = room[: queries.shape[0] * queries.shape[1] * seen.stop].view(*queries.shape[:2], seen.stop)
        torch.bmm(queries, keys[:, seen].transpose(1, 2), out=scores)
        own = scores.view(len(keys), group_size, num_rows, seen.stop)[..., seen.stop - num_rows :]
        own.masked_fill_(torch.ones_like(own[0, 0], dtype=torch.bool).triu(1), -math.inf)
        outputs = torch.bmm(scores.softmax(dim=-1), values[:, seen])
        out_BQHD[:, rows] = outputs.view(num_documents, num_heads, num_rows, -1).transpose(1, 2)
    return out_BQHD


def cudnn(query_BHQD: Tensor, key_BGKD: Tensor, value_BGKD: Tensor, terms: AttentionTerms) -> Tensor:
    """Return attention by cuDNN's kernel, the fastest that comes with torch on a Hopper card.

    It knows causal attention of all positions only. So queries of the last positions see their own positions
    causally and the earlier ones whole, and the two outputs are weighed by their shares of the softmax.

    Args:
        query_BHQD, key_BGKD, value_BGKD: Queries, keys and values, on CUDA in half precision.
        terms: The layer's; windows narrower than the keys, caps, sinks, few queries, and gradients of queries that
            are not all go to `sdpa`.

    Returns:
        Attention output, shape (B, Q, H, D).
    """
    num_queries, num_keys = query_BHQD.shape[2], key_BGKD.shape[2]
    windowed = terms.window is not None and terms.window < num_keys
    # few queries give the kernel too little to do, and the other one may divide the keys among the processors
    if windowed or terms.softcap is not None or terms.sinks is not None or num_queries < MIN_CUDNN_QUERIES:
        return sdpa(query_BHQD, key_BGKD, value_BGKD, terms)
    if num_queries < num_keys and torch.is_grad_enabled():  # torch has no derivative of the logarithms
        return sdpa(query_BHQD, key_BGKD, value_BGKD, terms)

    def part(keys: slice, is_causal: bool) -> tuple[Tensor, Tensor]:
        return torch.ops.aten._scaled_dot_product_cudnn_attention(  # type: ignore[no-any-return]
            query_BHQD, key_BGKD[:, :, keys], value_BGKD[:, :, keys], None, True, 0.0, is_causal, scale=terms.scale
        )[:2]

    return of_parts(part, num_queries, num_keys).transpose(1, 2)


def of_parts(part: Callable[[slice, bool], tuple[Tensor, Tensor]], num_queries: int, num_keys: int) -> Tensor:
    """Return attention over all keys from attention over the queries' own positions and over those before.

    Args:
        part: Attention of the queries to some keys, causal or not: outputs (B, H, Q, D), and the logarithm of the sum
            of exponentials of the scores, shape (B, H, Q) or (B, H, Q, 1).
        num_queries, num_keys: Q and K.

    Returns:
        Attention output, shape (B, H, Q, D).

    Source: FlashAttention, arXiv:2205.14135, section 3.1: softmax over blocks.
    """
    own_BHQD, own_lse = part(slice(num_keys - num_queries, num_keys), True)
    if num_queries == num_keys:
        return own_BHQD
    before_BHQD, before_lse = part(slice(num_keys - num_queries), False)
    share_BHQ1 = torch.sigmoid(before_lse - own_lse).reshape(*own_BHQD.shape[:3], 1)
    return own_BHQD.float().lerp(before_BHQD.float(), share_BHQ1.float()).to(own_BHQD.dtype)


def _products_pay() -> bool:
    """Return whether this CPU is one on which `products` was faster than torch's kernel: by 1.4 to 1.7 (LOG.md)."""
    known = cpu_instructions(CPU_INFO)
    return "avx512_bf16" in known and "amx_bf16" not in known


def _flash_function(name: str, module: str) -> Attend | None:
    """Return attention by a package of the flash-attn family; None where it is not there or cannot be loaded."""
    try:
        function = import_module(module).flash_attn_func
    except (ImportError, OSError, AttributeError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        logger.info("attention by %s is not used: %s", name, reason)
        return None

    def flash(query_BHQD: Tensor, key_BGKD: Tensor, value_BGKD: Tensor, terms: AttentionTerms) -> Tensor:
        if terms.sinks is not None:
            return plain(query_BHQD, key_BGKD, value_BGKD, terms)
        options: dict[str, object] = {"softmax_scale": terms.scale, "causal": True}
        if terms.window is not None and terms.window < key_BGKD.shape[2]:
            options["window_size"] = (terms.window - 1, 0)
        if terms.softcap is not None:
            options["softcap"] = terms.softcap
        # Latent attention has values of fewer dimensions than its keys
        num_lacking = query_BHQD.shape[-1] - value_BGKD.shape[-1]
        value = functional.pad(value_BGKD, (0, num_lacking)) if num_lacking else value_BGKD
        found = function(*(part.transpose(1, 2) for part in (query_BHQD, key_BGKD, value)), **options)
        out_BQHD: Tensor = found[0] if isinstance(found, tuple) else found
        return out_BQHD[..., : value_BGKD.shape[-1]]

    return flash


def _blocks(num_queries: int, num_keys: int, window: int | None, most: int) -> Iterator[tuple[slice, slice]]:
    """Yield slices of the queries, at most so many each, with the keys that any of them sees."""
    offset = num_keys - num_queries
    for start in range(0, num_queries, most):
        end = min(start + most, num_queries)
        yield slice(start, end), slice(max(0, offset + start - (window or num_keys) + 1), offset + end)


def _mask(rows: slice, seen: slice, offset: int, window: int | None, device: torch.device) -> Tensor:
    """Return which of some keys each of some queries sees, shape (queries, keys), bool."""
    positions_Q1 = torch.arange(rows.start, rows.stop, device=device)[:, None] + offset
    keys_K = torch.arange(seen.start, seen.stop, device=device)
    mask_QK = keys_K <= positions_Q1
    return mask_QK if window is None else mask_QK & (keys_K > positions_Q1 - window)
