"""Kernels of packed attention: those that differ from the definition are refused, packages are called as documented.

Shapes: B packs, T tokens of each, S tokens of all packs; H query heads, G key heads, D dimensions per head.
"""

import sys
from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

from tests.workers.test_attention_packages import flash_attn_func
from workers.attention import AttentionShape
from workers.attention_kernels import FLASH_PACKAGES, AttentionTerms
from workers.tuning.attention_flex import block_mask
from workers.tuning.attention_kernels import (
    Documents,
    PackedAttend,
    documents,
    flexible,
    packed_kernels,
    varlen,
)
from workers.tuning.attention_probe import definition, kernel_refusal

CPU = torch.device("cpu")
SHAPE = AttentionShape(4, 2, 16)


def without_documents(query: Tensor, key: Tensor, value: Tensor, terms: AttentionTerms, where: Documents) -> Tensor:
    return documents(query, key, value, terms, Documents(where.ends[[0, -1]], len(query)))


def without_windows(query: Tensor, key: Tensor, value: Tensor, terms: AttentionTerms, where: Documents) -> Tensor:
    return documents(query, key, value, terms._replace(window=None), where)


def without_caps(query: Tensor, key: Tensor, value: Tensor, terms: AttentionTerms, where: Documents) -> Tensor:
    return documents(query, key, value, terms._replace(softcap=None), where)


def without_sinks(query: Tensor, key: Tensor, value: Tensor, terms: AttentionTerms, where: Documents) -> Tensor:
    return documents(query, key, value, terms._replace(sinks=None), where)


def without_gradients_of_keys(
    query: Tensor, key: Tensor, value: Tensor, terms: AttentionTerms, where: Documents
) -> Tensor:
    return documents(query, key.detach() + 0 * key, value, terms, where)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("has_sinks", [False, True])
def test_documents_one_after_another_agree_with_the_definition(softcap: float | None, has_sinks: bool) -> None:
    shape = SHAPE._replace(softcap=softcap)
    assert kernel_refusal(documents, shape, has_sinks=has_sinks, device=CPU, dtype=torch.float32) == ""
    assert kernel_refusal(documents, shape, has_sinks=has_sinks, device=CPU, dtype=torch.bfloat16) == ""


@pytest.mark.parametrize(
    ("attend", "reason"),
    [
        (without_documents, "its output differs by"),
        (without_windows, "its output differs by"),
        (without_caps, "its output differs by"),
        (without_sinks, "its output differs by"),
        (without_gradients_of_keys, "its gradient by k differs by 1 of its norm"),
        (varlen, "ValueError: scores must have no sinks for torch's varlen attention, got some"),
        (flexible, "NotImplementedError: FlexAttention does not support backward on CPU"),
    ],
)
def test_a_kernel_that_differs_is_refused_with_the_reason(attend: PackedAttend, reason: str) -> None:
    shape = SHAPE._replace(softcap=2.0)
    assert reason in kernel_refusal(attend, shape, has_sinks=True, device=CPU, dtype=torch.float32)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    **options: Any,
) -> Tensor:
    """What flash-attn documents: (S, H, D), documents by cumulative lengths in int32."""
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert max_seqlen_q == max_seqlen_k == cu_seqlens_q.diff().max()
    bounds = pairwise(cu_seqlens_q.tolist())
    return torch.cat([flash_attn_func(*(x[None, i:j] for x in (q, k, v)), **options)[0] for i, j in bounds])


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("package", ["flash-attn 2", "flash-attn 3"])
def test_packages_of_the_flash_attn_family_come_first_and_are_called_as_they_document(
    package: str, softcap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in FLASH_PACKAGES.values():
        monkeypatch.setitem(sys.modules, module, None)
    standing_in = ModuleType(FLASH_PACKAGES[package])
    standing_in.flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, FLASH_PACKAGES[package], standing_in)
    found = packed_kernels(torch.device("cuda"), torch.bfloat16)
    assert [*found] == [package, "varlen", "flex", "documents"]
    shape = SHAPE._replace(softcap=softcap)
    assert kernel_refusal(found[package], shape, has_sinks=False, device=CPU, dtype=torch.bfloat16) == ""
    assert "no sinks" in kernel_refusal(found[package], shape, has_sinks=True, device=CPU, dtype=torch.bfloat16)


def test_without_half_precision_flex_attention_comes_first_on_cuda() -> None:
    assert [*packed_kernels(torch.device("cuda"), torch.float32)] == ["flex", "documents"]


def test_torch_s_varlen_attention_is_called_as_it_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    def varlen_attn(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seq_q: Tensor,
        cu_seq_k: Tensor,
        max_q: int,
        max_k: int,
        *,
        scale: float,
        window_size: tuple[int, int],
        enable_gqa: bool,
    ) -> Tensor:
        assert enable_gqa
        assert window_size[1] == 0  # causal
        window = None if window_size[0] == -1 else window_size[0] + 1  # keys to the left, without a token's own
        terms = AttentionTerms(scale, window)
        return definition(query, key, value, terms, Documents(cu_seq_q, max_q))

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    assert kernel_refusal(varlen, SHAPE, has_sinks=False, device=CPU, dtype=torch.float32) == ""


BOUNDS = [[0, 1], [0, 128], [0, 300], [0, 70, 71, 200, 300], [0, 128, 256, 640], [0, 5, 640], [0, 500, 501, 1024]]


@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
@pytest.mark.parametrize("window", [None, 1, 24, 128, 129, 300])
def test_blocks_are_those_that_torch_finds_by_looking_at_every_pair(bounds: list[int], window: int | None) -> None:
    num_tokens = bounds[-1]
    mask = block_mask(torch.tensor(bounds, dtype=torch.int32), num_tokens, window)
    expected = create_block_mask(mask.mask_mod, None, None, num_tokens, num_tokens, device="cpu")
    assert torch.equal(mask.to_dense(), expected.to_dense())
    for counts, indices, other_counts, other_indices in (
        (mask.kv_num_blocks, mask.kv_indices, expected.kv_num_blocks, expected.kv_indices),
        (mask.full_kv_num_blocks, mask.full_kv_indices, expected.full_kv_num_blocks, expected.full_kv_indices),
        (mask.q_num_blocks, mask.q_indices, expected.q_num_blocks, expected.q_indices),
        (mask.full_q_num_blocks, mask.full_q_indices, expected.full_q_num_blocks, expected.full_q_indices),
    ):
        assert counts is not None and indices is not None and other_counts is not None and other_indices is not None  # noqa: PT018
        assert torch.equal(counts, other_counts)
        for row, count in enumerate(counts.flatten().tolist()):
            found, other = (set(part[0, 0, row, :count].tolist()) for part in (indices, other_indices))
            assert found == other
