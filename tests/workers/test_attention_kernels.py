"""Attention kernels, against loops in float64, transformers' own attention, and each other."""

import math
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward as gemma2_attention
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward as gpt_oss_attention

from workers.attention_kernels import FLASH_PACKAGES, AttentionTerms, kernels, of_parts, plain, products, sdpa

# Outputs are means of standard normal values; scores and sums over up to 300 keys round a few times
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 16 * 2**-8}
SCALE = 0.3


class Shape(NamedTuple):
    num_queries: int
    num_keys: int
    num_heads: int = 4
    num_key_heads: int = 2
    head_dim: int = 16
    num_documents: int = 2


SHAPES = [
    Shape(300, 300),
    Shape(1, 300),
    Shape(1, 1),
    Shape(17, 300),
    Shape(299, 300),
    Shape(64, 128, 8, 8),
    Shape(100, 257, 6, 1),
    Shape(100, 257, 6, 2, head_dim=12),
    Shape(33, 65, 2, 2, head_dim=7, num_documents=1),
]
WINDOWS = [None, 1, 5, 70, 1000]


def random(shape: Shape, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, the heads of a position side by side in memory, as projections give them."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(shape.num_queries, shape.num_heads), *[(shape.num_keys, shape.num_key_heads)] * 2]
    query, key, value = (
        torch.randn(shape.num_documents, length, heads, shape.head_dim, generator=generator).to(dtype).transpose(1, 2)
        for length, heads in sizes
    )
    return query, key, value


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


def largest_difference(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return (found.float() - expected.float()).abs().max().item()


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


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int | None, int | None] = (-1, -1),
    softcap: float = 0.0,
) -> Tensor:
    """What flash-attn documents: (B, T, H, D); causal and windows aligned to the lower right; both ends included."""
    assert q.shape[-1] == k.shape[-1]
    num_queries, num_keys = q.shape[1], k.shape[1]
    rows, columns = torch.arange(num_queries)[:, None] + num_keys - num_queries, torch.arange(num_keys)
    left, right = window_size
    seen = torch.ones(num_queries, num_keys, dtype=torch.bool)
    if causal:
        seen &= columns <= rows
    if left is not None and left >= 0:
        seen &= columns >= rows - left
    if right is not None and right >= 0:
        seen &= columns <= rows + right
    wide_k, wide_v = (part.repeat_interleave(q.shape[2] // k.shape[2], dim=2) for part in (k, v))
    scores = torch.einsum("bqhd,bkhd->bhqk", q.float(), wide_k.float())
    scores = scores * (q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    weights = scores.masked_fill(~seen, -math.inf).softmax(dim=-1)
    return torch.einsum("bhqk,bkhd->bqhd", weights, wide_v.float()).to(q.dtype)


def flash_attn_func_3(*args: Tensor, **kwargs: Any) -> tuple[Tensor, None]:
    return flash_attn_func(*args, **kwargs), None


class Broken(ModuleType):
    """A package whose import fails, as one built for another CUDA does."""

    def __getattr__(self, name: str) -> object:
        if name == "flash_attn_func":
            raise OSError("libcudart.so.11.0: cannot open shared object file")
        raise AttributeError(name)


@pytest.fixture
def no_flash(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No package of the family is there, whatever this machine has."""
    for name in FLASH_PACKAGES.values():
        monkeypatch.setitem(sys.modules, name, None)
    return monkeypatch


def install(monkeypatch: pytest.MonkeyPatch, name: str, function: Any) -> None:
    module = ModuleType(name)
    module.flash_attn_func = function  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, module)
    for parent in [name.rpartition(".")[0]] * ("." in name):
        monkeypatch.setitem(sys.modules, parent, ModuleType(parent))


@pytest.mark.parametrize(
    ("package", "function"),
    [
        ("flash-attn 2", flash_attn_func),
        ("flash-attn 3", flash_attn_func_3),
        ("flash-attn 3", flash_attn_func),
        ("flash-attn 4", flash_attn_func_3),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_package_of_the_flash_attn_family_is_called_as_it_documents(
    no_flash: pytest.MonkeyPatch, package: str, function: Any, dtype: torch.dtype
) -> None:
    install(no_flash, FLASH_PACKAGES[package], function)
    found = kernels(torch.device("cuda"), dtype)
    assert list(found) == [package, "cudnn", "sdpa"]
    sinks = torch.tensor([0.5, -1.0, 2.0, 0.0])
    for shape in (Shape(300, 300), Shape(17, 300), Shape(1, 300)):
        parts = random(shape, dtype)
        query, key, value = (part.float() for part in parts)
        for terms in [
            *(AttentionTerms(SCALE, window) for window in WINDOWS),
            AttentionTerms(SCALE, 70, 2.0),
            AttentionTerms(SCALE, None, 2.0),
            AttentionTerms(SCALE, 70, None, sinks),
        ]:
            difference = largest_difference(found[package](*parts, terms), plain(query, key, value, terms))
            assert difference <= TOLERANCES[torch.bfloat16]


def test_the_newest_package_comes_first_and_what_always_works_last(no_flash: pytest.MonkeyPatch) -> None:
    for name in FLASH_PACKAGES.values():
        install(no_flash, name, flash_attn_func)
    found = kernels(torch.device("cuda"), torch.bfloat16)
    assert list(found) == ["flash-attn 4", "flash-attn 3", "flash-attn 2", "cudnn", "sdpa"]
    parts = random(Shape(17, 300), torch.bfloat16)  # each calls its own package
    install(no_flash, "flash_attn_interface", lambda *args, **kwargs: (_ for _ in ()).throw(RuntimeError("of 3")))
    found = kernels(torch.device("cuda"), torch.bfloat16)
    with pytest.raises(RuntimeError, match=r"^of 3$"):
        found["flash-attn 3"](*parts, AttentionTerms(SCALE))
    found["flash-attn 2"](*parts, AttentionTerms(SCALE))


def test_a_package_that_cannot_be_imported_is_passed_over(no_flash: pytest.MonkeyPatch) -> None:
    no_flash.setitem(sys.modules, "flash_attn", Broken("flash_attn"))
    assert list(kernels(torch.device("cuda"), torch.bfloat16)) == ["cudnn", "sdpa"]
    no_flash.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))  # of a version without that function
    assert list(kernels(torch.device("cuda"), torch.bfloat16)) == ["cudnn", "sdpa"]


def test_a_package_whose_library_is_missing_is_passed_over(
    no_flash: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("packages")
    no_flash.syspath_prepend(str(folder))
    for error in ("OSError('libcudart.so')", "ImportError('undefined symbol')", "RuntimeError('CUDA error')"):
        (folder / "flash_attn_interface.py").write_text(f"raise {error}\n", encoding="utf-8")
        no_flash.delitem(sys.modules, "flash_attn_interface", raising=False)
        assert list(kernels(torch.device("cuda"), torch.bfloat16)) == ["cudnn", "sdpa"]


def test_kernels_of_a_gpu_are_for_half_precision_on_a_gpu(no_flash: pytest.MonkeyPatch) -> None:
    install(no_flash, "flash_attn", flash_attn_func)
    assert list(kernels(torch.device("cuda"), torch.float32)) == ["sdpa"]
    assert list(kernels(torch.device("cpu"), torch.float32)) == ["sdpa"]


@pytest.mark.parametrize(
    ("flags", "name"),
    [("avx512_bf16", "products"), ("avx512_bf16 amx_bf16", "sdpa"), ("avx512f", "sdpa"), ("", "sdpa")],
)
def test_plain_products_are_for_cpus_that_have_no_faster_kernel_and_fast_products(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: str, name: str
) -> None:
    (tmp_path / "cpuinfo").write_text(f"flags\t\t: fpu {flags}\n")
    monkeypatch.setattr("workers.attention_kernels.CPU_INFO", tmp_path / "cpuinfo")
    assert list(kernels(torch.device("cpu"), torch.bfloat16)) == [name]
    assert list(kernels(torch.device("cpu"), torch.float32)) == ["sdpa"]


@pytest.mark.parametrize("window", [None, 70])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_plain_products_agree_with_the_definition(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, shape: Shape, window: int | None
) -> None:
    monkeypatch.setattr("workers.attention_kernels.MIN_PRODUCT_QUERIES", 2)
    monkeypatch.setattr("workers.attention_kernels.MOST_CACHED_SCORES", 2**15)
    parts, terms = random(shape, dtype), AttentionTerms(SCALE, window)
    with torch.inference_mode():
        found = products(*parts, terms)
    query, key, value = (part.float() for part in parts)
    expected = plain(query, key, value, terms)
    assert found.shape == expected.shape
    torch.testing.assert_close(found.float(), expected, atol=TOLERANCES[dtype], rtol=0.0)


def test_gradients_are_beyond_plain_products_and_go_to_torchs_kernel() -> None:
    parts, terms = random(Shape(100, 300)), AttentionTerms(SCALE)
    assert torch.equal(products(*parts, terms), sdpa(*parts, terms))


@pytest.mark.parametrize("window", [300, 5])
def test_few_queries_and_windows_are_beyond_cudnn_and_go_to_torchs_choice(
    no_flash: pytest.MonkeyPatch, window: int
) -> None:
    cudnn = partial(kernels(torch.device("cuda"), torch.bfloat16)["cudnn"])
    num_queries = 127 if window == 300 else 200  # where it would be taken it has no kernel for the CPU
    parts = random(Shape(num_queries, 300), torch.bfloat16)
    terms = AttentionTerms(SCALE, window)
    assert torch.equal(cudnn(*parts, terms), sdpa(*parts, terms))
    taken = random(Shape(128, 300), torch.bfloat16)
    with torch.inference_mode(), pytest.raises(NotImplementedError):
        cudnn(*taken, AttentionTerms(SCALE))
    # Torch has no derivative of the logarithms by which two parts are weighed
    assert torch.equal(cudnn(*taken, AttentionTerms(SCALE)), sdpa(*taken, AttentionTerms(SCALE)))
