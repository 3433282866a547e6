"""Fused kernels: taken where they agree and are faster, undone bit for bit, and never in the way of the factors."""

import copy
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.models.llama import modeling_llama

from needles.document import NeedleDocument
from rope.factors import RescaleFactors
from workers import fused
from workers.fused import Kernel, fuse, fuse_with, liger_kernels, torch_kernels, unfuse
from workers.fused_parts import RotationPart, parts_of
from workers.model import LoadedModel
from workers.scoring import NeedleScoring

Load = Callable[[str], LoadedModel]
MakeFactors = Callable[..., RescaleFactors]
Documents = list[NeedleDocument]

FULL = ("llama", "mistral", "qwen2", "qwen3", "phi3")
"""Architectures with the norm of Llama, SwiGLU, and a rotation of halves."""


def norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Llama's norm, rounded where torch rounds."""
    return functional.rms_norm(hidden, weight.shape, weight, eps)


def gemma_norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Gemma's, which multiplies by 1 + weight."""
    return functional.rms_norm(hidden, weight.shape, 1 + weight, eps)


def gate(gate: Tensor, up: Tensor) -> Tensor:
    """SwiGLU by the sigmoid."""
    return gate * torch.sigmoid(gate) * up


def rotation(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """The rotation of halves, over its inputs, by one half of cos and sin."""
    num_pairs = cos.shape[-1] // 2
    cos, sin = cos[:, None, :, :num_pairs], sin[:, None, :, :num_pairs]
    for heads in (query, key):
        first, second = heads[..., :num_pairs].clone(), heads[..., num_pairs : 2 * num_pairs].clone()
        heads[..., :num_pairs] = first * cos - second * sin
        heads[..., num_pairs : 2 * num_pairs] = second * cos + first * sin
    return query, key


ALL = (
    Kernel("RMSNorm", "ours", norm),
    Kernel("RMSNorm", "ours", gemma_norm),
    Kernel("SwiGLU", "ours", gate),
    Kernel("RoPE", "ours", rotation),
)


@pytest.fixture
def _any_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes kernels that are slower, too: which of two is faster on so small a model is for nobody to say."""
    monkeypatch.setattr(fused, "LEAST_GAIN", 0.0)
    monkeypatch.setattr(fused, "NUM_TIMED_TOKENS", 128)


def logits(model: PreTrainedModel, input_ids: Tensor) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model(input_ids=input_ids, use_cache=False).logits
    return found


def own_forwards(model: PreTrainedModel) -> set[str]:
    """Classes of the modules that have a forward of their own."""
    return {type(module).__name__ for module in model.modules() if "forward" in module.__dict__}


@pytest.mark.usefixtures("_any_speed")
def test_a_fused_model_computes_the_same_and_undone_the_same_bits(
    architecture: str, load: Load, input_ids: Tensor
) -> None:
    model = load(architecture).model
    before = logits(model, input_ids)
    state = [dict(module.__dict__) for module in model.modules()]
    decided = fuse_with(model, ALL)
    lacking = {"gpt_neox": {"RMSNorm", "SwiGLU"}}.get(architecture, set() if architecture in FULL else {"SwiGLU"})
    for part in {"RMSNorm", "SwiGLU", "RoPE"} - lacking:
        assert f"{part} by ours (" in decided
    # float32 sums in another order, in logits of a few tens
    torch.testing.assert_close(logits(model, input_ids), before, rtol=1e-4, atol=1e-3)
    unfuse(model)
    assert torch.equal(logits(model, input_ids), before)
    assert [dict(module.__dict__) for module in model.modules()] == state


@pytest.mark.usefixtures("_any_speed")
def test_every_part_of_every_layer_is_fused_and_no_other_model_is(load: Load, input_ids: Tensor) -> None:
    model, other = load("llama").model, load("llama").model
    rotate = modeling_llama.apply_rotary_pos_emb
    fuse_with(model, ALL)
    assert own_forwards(model) == {"LlamaRMSNorm", "LlamaMLP", "LlamaAttention"}
    norms = [module for module in model.modules() if type(module).__name__ == "LlamaRMSNorm"]
    assert all("forward" in module.__dict__ for module in norms)
    assert own_forwards(other) == set()
    assert modeling_llama.apply_rotary_pos_emb is rotate
    assert logits(other, input_ids).shape == logits(model, input_ids).shape


@pytest.mark.usefixtures("_any_speed")
def test_factors_are_scored_alike_fused_or_not(load: Load, make_factors: MakeFactors, documents: Documents) -> None:
    for name in FULL:
        loaded = load(name)
        ids = [document.id for document in documents]
        candidates = [make_factors(loaded, method, temperature=1.1) for method in ("none", "yarn")]
        plain = [NeedleScoring(loaded, documents).score(candidate, ids) for candidate in candidates]
        assert fuse_with(loaded.model, ALL).count(" by ours") >= 3
        for candidate, expected in zip(candidates, plain, strict=True):
            for ours, theirs in zip(NeedleScoring(loaded, documents).score(candidate, ids), expected, strict=True):
                assert ours.sum_nll == pytest.approx(theirs.sum_nll, rel=1e-4)  # as above


@pytest.mark.usefixtures("_any_speed")
def test_gradients_go_through_the_models_own_code(load: Load, make_factors: MakeFactors, documents: Documents) -> None:
    loaded = load("llama")
    factors = make_factors(loaded, "yarn")
    expected = NeedleScoring(loaded, documents).score_with_gradient(factors, ["document-0"])[0]
    fuse_with(loaded.model, ALL)
    found = NeedleScoring(loaded, documents).score_with_gradient(factors, ["document-0"])[0]
    assert (found.gradient, found.sum_nll) == (expected.gradient, expected.sum_nll)


@pytest.mark.usefixtures("_any_speed")
def test_a_copy_of_a_fused_model_computes_with_its_own_weights(load: Load, input_ids: Tensor) -> None:
    model = load("llama").model
    fuse_with(model, ALL)
    before = logits(model, input_ids)
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin, input_ids), before)
    with torch.no_grad():
        for name in ("mlp.down_proj", "mlp.gate_proj", "self_attn.q_proj", "input_layernorm"):
            changed = copy.deepcopy(twin)
            changed.get_parameter(f"model.layers.0.{name}.weight").mul_(2)
            assert not torch.equal(logits(changed, input_ids), before), name
    assert torch.equal(logits(model, input_ids), before)


def test_a_kernel_that_is_slower_is_not_taken(load: Load, input_ids: Tensor) -> None:
    def slow(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
        time.sleep(0.05)
        return norm(hidden, weight, eps)

    model = load("llama").model
    before = logits(model, input_ids)
    decided = fuse_with(model, [Kernel("RMSNorm", "slow", slow)])
    assert decided.startswith("off: RMSNorm as it is (slow: ")
    assert " times as fast)" in decided
    assert own_forwards(model) == set()
    assert torch.equal(logits(model, input_ids), before)


def test_the_faster_of_two_is_taken(load: Load) -> None:
    class SleepyRMSNorm(modeling_llama.LlamaRMSNorm):
        def forward(self, hidden_states: Tensor) -> Tensor:
            time.sleep(0.02)
            return super().forward(hidden_states)

    def slower(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
        time.sleep(0.005)
        return norm(hidden, weight, eps)

    model = load("llama").model
    for module in model.modules():
        if isinstance(module, modeling_llama.LlamaRMSNorm):
            module.__class__ = SleepyRMSNorm
    decided = fuse_with(model, [Kernel("RMSNorm", "slower", slower), Kernel("RMSNorm", "faster", norm)])
    assert decided.startswith("RMSNorm by faster (")
    assert own_forwards(model) == {"SleepyRMSNorm"}


def wrong_eps(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    return norm(hidden, weight, eps * 1.1)


def rounded(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    return norm(hidden, weight, eps).to(torch.bfloat16)


def raising(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    raise RuntimeError("no such\n  architecture")


def not_a_number(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    return norm(hidden, weight, eps) * torch.nan


@pytest.mark.parametrize(
    ("compute", "reason"),
    [
        (wrong_eps, "differs by 0.0"),
        (gemma_norm, "differs by "),
        (not_a_number, "differs by nan"),
        (rounded, "gives (1, 64, 32, 32) torch.bfloat16, not (1, 64, 32, 32) torch.float32"),
        (raising, "no such architecture"),
    ],
)
@pytest.mark.usefixtures("_any_speed")
def test_a_kernel_that_computes_something_else_is_not_taken(
    compute: Callable[..., Tensor], reason: str, load: Load, input_ids: Tensor
) -> None:
    model = load("llama").model
    with torch.no_grad():  # fresh norms have weights of 1, under which much is alike
        for module in model.modules():
            if isinstance(module, modeling_llama.LlamaRMSNorm):
                module.weight.copy_(torch.linspace(0.5, 2, len(module.weight)))
    before = logits(model, input_ids)
    decided = fuse_with(model, [Kernel("RMSNorm", "one", compute)])
    assert decided.startswith(f"off: RMSNorm as it is (one: {reason}")
    assert "\n" not in decided
    assert torch.equal(logits(model, input_ids), before)


@pytest.mark.parametrize(("failure", "reason"), [(None, "logits differ by "), ("out of memory", "out of memory")])
@pytest.mark.usefixtures("_any_speed")
def test_a_kernel_that_fails_in_the_model_alone_is_taken_out_again(
    failure: str | None, reason: str, load: Load, input_ids: Tensor
) -> None:
    model = load("llama").model
    in_the_model = [False]

    def fickle(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
        if not in_the_model[0]:
            return norm(hidden, weight, eps)
        if failure:
            raise torch.OutOfMemoryError(failure)
        return norm(hidden, weight, eps).flip(1)

    def installed(module: object, args: Sequence[object]) -> None:
        in_the_model[0] = "forward" in model.get_submodule("model.norm").__dict__

    before = logits(model, input_ids)
    hook = model.register_forward_pre_hook(installed)
    decided = fuse_with(model, [Kernel("RMSNorm", "fickle", fickle), ALL[2]])
    hook.remove()
    assert decided.startswith(f"off: {reason}")
    assert own_forwards(model) == set()
    assert torch.equal(logits(model, input_ids), before)


@pytest.mark.usefixtures("_any_speed")
def test_a_module_with_a_forward_of_its_own_is_left_alone(load: Load, input_ids: Tensor) -> None:
    model = load("llama").model
    hooked: Any = model.get_submodule("model.norm")
    forward = hooked.forward
    hooked.forward = lambda hidden: forward(hidden)
    mine = hooked.forward
    fuse_with(model, ALL)
    assert hooked.forward is mine
    unfuse(model)
    assert hooked.forward is mine


def test_an_mlp_that_does_more_than_swiglu_is_no_part(load: Load) -> None:
    class ScaledMLP(modeling_llama.LlamaMLP):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = 2 * super().forward(x)  # type: ignore[no-untyped-call]
            return out

    model = load("llama").model
    model.get_submodule("model.layers.0.mlp").__class__ = ScaledMLP
    with torch.inference_mode():
        parts = {part.name: part.modules for part in parts_of(model)}
    assert parts["SwiGLU"] == [model.get_submodule("model.layers.1.mlp")]


def test_what_is_not_laid_out_as_proved_is_rotated_by_the_models_own_function(load: Load) -> None:
    def refused(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        raise AssertionError("the kernel was called")

    model = load("llama").model
    with torch.inference_mode():
        (part,) = (part for part in parts_of(model) if isinstance(part, RotationPart))
        query, key, cos, sin = part.inputs(8)
        rotate = part.forward(refused).__globals__["apply_rotary_pos_emb"]
        own = modeling_llama.apply_rotary_pos_emb
        last = (query[:, :, -1:], key[:, :, -1:], cos, sin)
        with pytest.raises(AssertionError, match="the kernel was called"):
            rotate(query, key, cos, sin)
        expected = own(query.transpose(1, 2), key.transpose(1, 2), cos, sin, unsqueeze_dim=2)
        found = rotate(query.transpose(1, 2), key.transpose(1, 2), cos, sin, unsqueeze_dim=2)
        assert all(map(torch.equal, found, expected))
        assert all(map(torch.equal, rotate(*last), own(*last)))


def test_a_model_on_a_cpu_stays_as_it_is(load: Load) -> None:
    model = load("llama").model
    assert fuse(model) == "off: the model is not on CUDA"
    assert own_forwards(model) == set()


def test_a_model_without_such_parts_stays_as_it_is(load: Load) -> None:
    model = load("gpt_neox").model
    assert fuse_with(model, torch_kernels()) == "off: the model has no part that they compute"
    assert own_forwards(model) == set()


def test_a_missing_package_is_named() -> None:
    if find_spec("liger_kernel") is not None:
        pytest.skip("liger-kernel is installed")
    with pytest.raises(ImportError, match=r"^not installed$"):
        liger_kernels()


@pytest.mark.usefixtures("_any_speed")
def test_ligers_kernels_agree_where_they_run(load: Load) -> None:
    if not torch.cuda.is_available() or find_spec("liger_kernel") is None:
        pytest.skip("liger-kernel needs CUDA, and to be installed: pip install 'ropewalk[gpu]'")
    for name in FULL:
        model = load(name).model
        model.to("cuda", torch.bfloat16)  # type: ignore[arg-type]
        decided = fuse_with(model, liger_kernels())
        for part in ("RMSNorm", "SwiGLU", "RoPE"):
            assert f"{part} by liger-kernel (" in decided, decided
