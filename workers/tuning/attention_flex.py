"""Attention inside documents by torch's flex attention, with the blocks worked out from the documents' bounds.

Shapes: S tokens of all packs, pack after pack; H query heads, G key heads, D dimensions per head; E boundaries of
documents; N blocks of tokens.
"""

from collections.abc import Callable
from functools import cache
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxOutput, AuxRequest, BlockMask, flex_attention

from workers.attention_kernels import AttentionTerms

BLOCK = 128
"""Tokens of a block's side."""
MOST_KEPT = 8
"""Block masks that are kept: those of one micro-batch, one for each window of its layers."""

_ScoreMod: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
_kept: list[tuple[Tensor, int | None, BlockMask]] = []


def flex(query_SHD: Tensor, key_SGD: Tensor, value_SGD: Tensor, terms: AttentionTerms, ends_E: Tensor) -> Tensor:
    """Return attention inside documents: any terms, no matrix over pairs of tokens. Compiled on CUDA.

    Args:
        query_SHD, key_SGD, value_SGD: Queries, keys and values; on a CPU without gradients, which torch lacks there.
        terms: The layer's.
        ends_E: Cumulative lengths of the documents from 0 to S, shape (documents + 1,), int32.

    Returns:
        Attention output, shape (S, H, D).
    """
    mask = _block_mask(ends_E, len(query_SHD), terms.window)
    query, key, value = (part.transpose(0, 1)[None] for part in (query_SHD, key_SGD, value_SGD))
    eager: Callable[..., tuple[Tensor, AuxOutput]] = flex_attention
    attend = _compiled() if query_SHD.is_cuda else eager
    out, aux = attend(
        *(query, key, value),
        score_mod=None if terms.softcap is None else _capped(terms.softcap),
        block_mask=mask,
        scale=terms.scale,
        enable_gqa=query.shape[1] > key.shape[1],
        return_aux=AuxRequest(lse=terms.sinks is not None),
    )
    if terms.sinks is not None and aux.lse is not None:
        # A sink adds its exponential to the softmax's sum and nothing to the output
        share_1HS1 = torch.sigmoid(aux.lse - terms.sinks.float().view(1, -1, 1))[..., None]
        out = out * share_1HS1.to(out.dtype)
    return out[0].transpose(0, 1)


def document_of(ends_E: Tensor, num_tokens: int) -> Tensor:
    """Return the number of each token's document, without waiting for the device.

    Args:
        ends_E: Cumulative lengths of the documents from 0 to S, shape (documents + 1,), int32.
        num_tokens: S.

    Returns:
        Numbers from 0, shape (S,), int32.
    """
    positions_S = torch.arange(num_tokens, device=ends_E.device, dtype=ends_E.dtype)
    return torch.searchsorted(ends_E[1:].contiguous(), positions_S, right=True, out_int32=True)


def block_mask(ends_E: Tensor, num_tokens: int, window: int | None) -> BlockMask:
    """Return which blocks of tokens hold pairs that attend, from the bounds of the documents alone.

    torch's create_block_mask looks at every pair of tokens: 17 GB of booleans for 131,072 of them.

    Args:
        ends_E: Cumulative lengths of the documents from 0 to S, shape (documents + 1,), int32.
        num_tokens: S.
        window: Tokens that a token sees at most, itself among them; None for all before it.

    Returns:
        Blocks, and the rule for pairs in those that are neither full nor empty.
    """
    document_S = document_of(ends_E, num_tokens)
    starts_N = torch.arange(0, num_tokens, BLOCK, device=ends_E.device)
    first_N = document_S[starts_N]
    last_N = document_S[(starts_N + BLOCK - 1).clamp(max=num_tokens - 1)]
    shift_NN = starts_N[:, None] - starts_N  # of the queries' block from the keys'
    some_NN = (shift_NN >= 0) & (last_N >= first_N[:, None])
    # Keys before the queries' block, all in the one document of the queries'; the last block may be cut off
    full_NN = (shift_NN > 0) & (first_N == last_N[:, None]) & (starts_N[:, None] + BLOCK <= num_tokens)
    if window is not None:
        some_NN &= shift_NN - BLOCK + 1 < window
        full_NN &= shift_NN + BLOCK - 1 < window

    def attends(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        inside = (document_S[query] == document_S[key]) & (key <= query)
        return inside if window is None else inside & (query - key < window)

    return BlockMask.from_kv_blocks(
        *_ordered(some_NN & ~full_NN),
        *_ordered(full_NN),
        BLOCK_SIZE=BLOCK,
        mask_mod=attends,
        seq_lengths=(num_tokens, num_tokens),
    )


def _ordered(blocks_NN: Tensor) -> tuple[Tensor, Tensor]:
    """Return the number of keys' blocks for each queries' block, and which, those first."""
    order_NN = torch.argsort(~blocks_NN, dim=-1, stable=True)
    return blocks_NN.sum(-1, dtype=torch.int32)[None, None], order_NN.to(torch.int32)[None, None]


def _block_mask(ends_E: Tensor, num_tokens: int, window: int | None) -> BlockMask:
    """Return the blocks, made once for all layers of a micro-batch and its backward pass."""
    for ends, kept_window, mask in _kept:
        if ends is ends_E and kept_window == window:
            return mask
    mask = block_mask(ends_E, num_tokens, window)
    _kept.append((ends_E, window, mask))
    del _kept[:-MOST_KEPT]
    return mask


@cache
def _compiled() -> Callable[..., tuple[Tensor, AuxOutput]]:
    return torch.compile(flex_attention, dynamic=False)


@cache
def _capped(softcap: float) -> _ScoreMod:
    """Return the change of a score under a cap; one function for one cap, so that it is compiled once."""

    def capped(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return capped
