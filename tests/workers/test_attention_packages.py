"""Which kernels there are: packages of the flash-attn family, cuDNN's, plain products, each against the definition."""

import math
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.workers.attention_inputs import SCALE, SHAPES, TOLERANCES, WINDOWS, Shape, largest_difference, random
from workers.attention_kernels import FLASH_PACKAGES, AttentionTerms, kernels, plain, products, sdpa


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
