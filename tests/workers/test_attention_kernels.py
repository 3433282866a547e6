"""Attention kernels, against loops in float64, transformers' own attention, and each other."""

import math
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward as gemma2_attention
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward as gpt_oss_attention

from tests.workers.attention_inputs import SCALE, SHAPES, TOLERANCES, WINDOWS, Shape, largest_difference, random
from workers.attention_kernels import AttentionTerms, of_parts, plain, sdpa


def by_definition(query: Tensor, key: Tensor, value: Tensor, terms: AttentionTerms) -> npt.NDArray[np.float64]:
    """Attention with loops over everything, float64, shape (B, Q, H, D)."""
    q, k, v = (part.double().numpy() for part in (query, key, value))
    num_documents, num_heads, num_queries, head_dim = q.shape
    num_key_heads, num_keys = k.shape[1:3]
    out = np.zeros((num_documents, num_queries, num_heads, head_dim))
    for b in range(num_documents):
        for h in range(num_heads):
            g = h * num_key_heads // num_heads
            for i in range(num_queries):
                position = num_keys - num_queries + i
                first = 0 if terms.window is None else max(0, position - terms.window + 1)
                scores = []
                for j in range(first, position + 1):
                    score = terms.scale * sum(q[b, h, i, d] * k[b, g, j, d] for d in range(head_dim))
                    scores.append(score if terms.softcap is None else terms.softcap * math.tanh(score / terms.softcap))
                total = sum(math.exp(score) for score in scores)
                if terms.sinks is not None:
                    total += math.exp(terms.sinks[h].item())
                for j, score in enumerate(scores, start=first):
                    out[b, i, h] += math.exp(score) / total * v[b, g, j]
    return out


@pytest.mark.parametrize("window", [None, 1, 3, 6, 20])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("has_sinks", [False, True])
@pytest.mark.parametrize("num_queries", [1, 4, 7])
def test_plain_attention_is_its_definition(
    window: int | None, softcap: float | None, has_sinks: bool, num_queries: int
) -> None:
    sinks = torch.tensor([0.5, -1.0, 2.0, 0.0]) if has_sinks else None
    terms = AttentionTerms(SCALE, window, softcap, sinks)
    parts = random(Shape(num_queries, 7, head_dim=3))
    # float64 in the loops, some ten roundings of float32 in the kernel
    assert np.abs(plain(*parts, terms).numpy() - by_definition(*parts, terms)).max() < 2e-6


def test_plain_attention_worked_out_by_hand() -> None:
    # One head of one dimension; scores of the second query: 0 and ln 3, so that shares are 1/4 and 3/4
    query, key = torch.tensor([[[[5.0], [1.0]]]]), torch.tensor([[[[0.0], [math.log(3)]]]])
    value = torch.tensor([[[[4.0], [8.0]]]])
    assert plain(query, key, value, AttentionTerms(1.0)).flatten().tolist() == pytest.approx([4.0, 7.0])
    assert plain(query, key, value, AttentionTerms(1.0, window=1)).flatten().tolist() == pytest.approx([4.0, 8.0])
    # A sink of ln 4: 1/(1+4) of the first value; 1/8 and 3/8 of both
    sinks = torch.tensor([math.log(4)])
    found = plain(query, key, value, AttentionTerms(1.0, sinks=sinks)).flatten().tolist()
    assert found == pytest.approx([0.8, 3.5])


class OfGptOss(nn.Module):
    """What transformers' function reads of its layer."""

    num_key_value_groups = 2

    def __init__(self, sinks: Tensor) -> None:
        super().__init__()
        self.sinks = sinks


def mask_of(num_queries: int, num_keys: int, window: int | None) -> Tensor:
    """What is added to scores, by torch's own triangles, aligned to the lower right."""
    seen = torch.ones(num_queries, num_keys, dtype=torch.bool).tril(num_keys - num_queries)
    if window is not None:
        seen &= torch.ones_like(seen).triu(num_keys - num_queries - window + 1)
    return torch.zeros(num_queries, num_keys).masked_fill(~seen, -math.inf)


@pytest.mark.parametrize("kernel", [plain, sdpa])
@pytest.mark.parametrize("window", [None, 70])
@pytest.mark.parametrize("num_queries", [300, 17])
def test_sinks_are_those_of_gpt_oss(kernel: Any, window: int | None, num_queries: int) -> None:
    query, key, value = random(Shape(num_queries, 300))
    sinks = torch.randn(4, generator=torch.Generator().manual_seed(1))
    mask = mask_of(num_queries, 300, window)
    expected, _ = gpt_oss_attention(OfGptOss(sinks).eval(), query, key, value, mask, scaling=SCALE)
    found = kernel(query, key, value, AttentionTerms(SCALE, window, None, sinks))
    assert largest_difference(found, expected) < TOLERANCES[torch.float32]


@pytest.mark.parametrize("kernel", [plain, sdpa])
@pytest.mark.parametrize("window", [None, 70])
def test_the_cap_of_scores_is_that_of_gemma2(kernel: Any, window: int | None) -> None:
    query, key, value = random(Shape(17, 300))
    module = OfGptOss(torch.zeros(0)).eval()
    mask = mask_of(17, 300, window)
    expected, _ = gemma2_attention(module, query, key, value, mask, scaling=SCALE, softcap=1.5)
    assert largest_difference(kernel(query, key, value, AttentionTerms(SCALE, window, 1.5)), expected) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("window", WINDOWS, ids="window {}".format)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("most", [None, 13])
def test_every_kernel_of_the_cpu_agrees_with_the_definition(
    shape: Shape, window: int | None, dtype: torch.dtype, most: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = random(shape, dtype)
    query, key, value = (part.float() for part in parts)
    terms = AttentionTerms(SCALE, window)
    mask = mask_of(shape.num_queries, shape.num_keys, window)
    attend = partial(functional.scaled_dot_product_attention, enable_gqa=True)
    expected = attend(query, key, value, mask, scale=SCALE).transpose(1, 2)
    if most:
        monkeypatch.setattr("workers.attention_kernels.MOST_MASKED_QUERIES", most)
        per_query = shape.num_documents * shape.num_heads * shape.num_keys
        monkeypatch.setattr("workers.attention_kernels.MOST_SCORES", most * per_query)
    for kernel in (plain, sdpa):
        found = kernel(*parts, terms)
        assert found.dtype == dtype
        assert largest_difference(found, expected) <= TOLERANCES[dtype]


def test_scores_that_do_not_fit_are_computed_query_by_query(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = random(Shape(17, 300))
    expected = plain(*parts, AttentionTerms(SCALE, 70))
    monkeypatch.setattr("workers.attention_kernels.MOST_SCORES", 1)
    # the sums are the same, in kernels for other sizes
    assert largest_difference(plain(*parts, AttentionTerms(SCALE, 70)), expected) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("has_last_dimension", [False, True])
@pytest.mark.parametrize(
    "shape", [shape for shape in SHAPES if shape.num_heads == shape.num_key_heads or shape.num_queries < 300], ids=str
)
def test_two_parts_weighed_by_their_shares_are_attention_to_both(
    shape: Shape, has_last_dimension: bool, dtype: torch.dtype
) -> None:
    query, key, value = random(shape, dtype)
    groups = shape.num_heads // shape.num_key_heads
    wide_key, wide_value = (part.repeat_interleave(groups, dim=1) for part in (key, value))

    def part(keys: slice, is_causal: bool) -> tuple[Tensor, Tensor]:
        # torch's own kernel of the CPU, which says the logarithm of its sums too
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, wide_key[:, :, keys], wide_value[:, :, keys], 0.0, is_causal, scale=SCALE
        )
        return out, lse[..., None] if has_last_dimension else lse

    found = of_parts(part, shape.num_queries, shape.num_keys).transpose(1, 2)
    expected = plain(query.float(), key.float(), value.float(), AttentionTerms(SCALE))
    assert found.dtype == dtype
    assert largest_difference(found, expected) <= TOLERANCES[dtype]


def test_a_share_of_nearly_one_or_nothing_is_no_nan() -> None:
    def part(keys: slice, is_causal: bool) -> tuple[Tensor, Tensor]:
        lse = torch.tensor([-500.0, 500.0, 0.0]) if is_causal else torch.tensor([500.0, -500.0, 0.0])
        return torch.full((1, 1, 3, 2), 1.0 if is_causal else 3.0), lse.view(1, 1, 3)

    assert of_parts(part, 3, 10)[0, 0, :, 0].tolist() == [3.0, 1.0, 2.0]


@pytest.mark.parametrize(("has_softcap", "has_sinks"), [(True, False), (False, True)])
def test_scores_beyond_a_kernel_are_computed_by_the_definition(has_softcap: bool, has_sinks: bool) -> None:
    sinks = torch.ones(4) if has_sinks else None
    terms = AttentionTerms(SCALE, 70, 2.0 if has_softcap else None, sinks)
    parts = random(Shape(17, 300))
    assert torch.equal(sdpa(*parts, terms), plain(*parts, terms))


def test_gradients_go_through_every_kernel_of_the_cpu() -> None:
    found = []
    for kernel in (plain, sdpa):
        for terms in (AttentionTerms(SCALE), AttentionTerms(SCALE, 70)):
            query, key, value = (part.requires_grad_() for part in random(Shape(17, 300)))
            found.append(torch.autograd.grad(kernel(query, key, value, terms).square().sum(), (query, key, value)))
    for ours, theirs in ((found[2], found[0]), (found[3], found[1])):
        for mine, other in zip(ours, theirs, strict=True):
            assert largest_difference(mine, other) < 10 * TOLERANCES[torch.float32]
