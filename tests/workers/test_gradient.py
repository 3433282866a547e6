"""The gradient of the needle loss by factors and temperature: as differences say, at no cost to the loss."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from accelerate import dispatch_model  # type: ignore[import-untyped]
from torch import Tensor, nn
from transformers import CohereConfig, PreTrainedConfig

from needles.document import NeedleDocument
from results.measurement import Measurement
from rope.factors import RescaleFactors
from workers.gradient import checkpointed_layers
from workers.local import LocalScorer
from workers.model import LoadedModel, input_device, load_model
from workers.rope_patch import RopePatch
from workers.scorer import ScoringFactory, Task
from workers.scoring import NeedleScoring

Load = Callable[[str], LoadedModel]
MakeFactors = Callable[..., RescaleFactors]
Documents = list[NeedleDocument]
Vectors = npt.NDArray[np.float64]
IDS = [f"document-{number}" for number in range(4)]


def gradients(measurements: Sequence[Measurement]) -> Vectors:
    """Shape (documents, pairs + 1)."""
    assert [measurement.failure for measurement in measurements] == [None] * len(measurements)
    return np.array([measurement.gradient for measurement in measurements])


def losses(measurements: Sequence[Measurement]) -> Vectors:
    return np.array([measurement.sum_nll / measurement.num_tokens for measurement in measurements])


def moved(factors: RescaleFactors, index: int, step: float) -> RescaleFactors:
    """One factor times e^step, or the attention temperature plus step."""
    if index == len(factors.values):
        return factors.with_temperature(factors.attention_temperature + step)
    values = list(factors.values)
    values[index] *= math.exp(step)
    return replace(factors, values=tuple(values))


def check_against_differences(scoring: NeedleScoring, factors: RescaleFactors) -> None:
    found = gradients(scoring.score_with_gradient(factors, IDS))
    num_pairs = len(factors.values)
    angles = 127 * factors.base ** (-np.arange(num_pairs) / num_pairs) / np.array(factors.values)
    # No angle moves by more than 0.04; the slow pairs' steps are large, so that float32 does not drown them
    steps = np.append(np.minimum(0.05, 0.02 / angles), 0.005)

    def loss(index: int, num_steps: int) -> Vectors:
        return losses(scoring.score(moved(factors, index, num_steps * steps[index]), IDS))

    # The central difference of fourth order
    differences = [
        (8 * (loss(index, 1) - loss(index, -1)) - (loss(index, 2) - loss(index, -2))) / (12 * steps[index])
        for index in range(num_pairs + 1)
    ]
    expected = np.array(differences).T
    # 1 % for the terms of fifth order; losses of about 10 are good to 4e-6 in float32
    tolerance = 0.01 * np.abs(expected).max(axis=0) + 5e-6 / steps
    assert (np.abs(found - expected) <= tolerance).all()
    # The comparison means something for the fast pairs and the temperature
    assert (np.abs(expected).max(axis=0) > 10 * tolerance)[[0, 1, -1]].all()


def test_the_gradient_is_that_of_central_differences(
    architecture: str, load: Load, make_factors: MakeFactors, documents: Documents
) -> None:
    loaded = load(architecture)
    check_against_differences(NeedleScoring(loaded, documents), make_factors(loaded, "yarn", 1.1))


def test_the_gradient_is_right_where_the_two_of_a_pair_stand_side_by_side(
    save_model: Callable[[PreTrainedConfig], Path],
    make_config: Callable[[str], PreTrainedConfig],
    make_factors: MakeFactors,
    documents: Documents,
) -> None:
    llama = make_config("llama").to_dict()
    names = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
    others = ["num_key_value_heads", "max_position_embeddings", "initializer_range"]
    config = CohereConfig(**{name: llama[name] for name in names + others})
    loaded = load_model(str(save_model(config)), dtype="float32", device="cpu")
    check_against_differences(NeedleScoring(loaded, documents), make_factors(loaded, "yarn", 1.1))


def test_the_gradient_is_right_where_the_first_tokens_keep_their_angle(
    load: Load, make_factors: MakeFactors, documents: Documents
) -> None:
    loaded = load("llama")
    factors = replace(make_factors(loaded, "yarn", 1.1), num_start_tokens=48)
    check_against_differences(NeedleScoring(loaded, documents), factors)


def test_factors_that_turn_nothing_have_no_gradient(
    load: Load, make_factors: MakeFactors, documents: Documents
) -> None:
    loaded = load("llama")
    scoring = NeedleScoring(loaded, documents)
    factors = make_factors(loaded, "linear")
    kept = gradients(scoring.score_with_gradient(replace(factors, num_start_tokens=128), IDS))
    assert (kept[:, :-1] == 0).all()
    assert (kept[:, -1] != 0).all()
    # An angle of 1e-7 at the last token
    still = gradients(scoring.score_with_gradient(moved(factors, 1, math.log(1e8)), IDS))
    assert np.abs(still[:, 1]).max() < 1e-5 * np.abs(still[:, 0]).max()


@pytest.mark.parametrize("most_kept", [0, 2**26])
def test_the_loss_has_the_bits_of_a_plain_score_and_the_model_is_left_alone(
    architecture: str,
    load: Load,
    make_factors: MakeFactors,
    documents: Documents,
    input_ids: Tensor,
    most_kept: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("workers.gradient.MOST_KEPT_BYTES", most_kept)
    loaded = load(architecture)
    scoring = NeedleScoring(loaded, documents)
    factors = make_factors(loaded, "yarn", 1.1)
    before = loaded.model(input_ids).logits
    attributes = [set(vars(module)) for module in loaded.model.modules()]
    measured = scoring.score_with_gradient(factors, IDS)
    plain = [scoring.score(factors, [document])[0] for document in IDS]
    assert [
        replace(measurement, gradient=None, seconds=0.0, flops=None, peak_bytes=None) for measurement in measured
    ] == [replace(measurement, seconds=0.0, flops=None, peak_bytes=None) for measurement in plain]
    assert torch.equal(loaded.model(input_ids).logits, before)
    assert [set(vars(module)) for module in loaded.model.modules()] == attributes
    assert not any(module._forward_hooks for module in loaded.model.modules())
    assert not any(module.training for module in loaded.model.modules())
    assert all(weight.grad is None for weight in loaded.model.parameters())


def test_layers_that_are_computed_again_give_the_same_bits(
    architecture: str, load: Load, make_factors: MakeFactors, documents: Documents, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(architecture)
    scoring = NeedleScoring(loaded, documents)
    factors = make_factors(loaded, "yarn", 1.1)
    num_layers = loaded.model.config.num_hidden_layers
    calls: list[nn.Module] = []
    for module in loaded.model.modules():
        if type(module).__name__.endswith("MLP"):
            module.register_forward_pre_hook(lambda module, args: calls.append(module))
    kept = gradients(scoring.score_with_gradient(factors, IDS))
    assert len(calls) == num_layers * len(IDS)
    calls.clear()
    monkeypatch.setattr("workers.gradient.MOST_KEPT_BYTES", 0)
    assert np.array_equal(gradients(scoring.score_with_gradient(factors, IDS)), kept)
    # Once more but for what the rotation does not change: Gemma 3's first layer, GPT-NeoX' first feed-forward
    num_again = num_layers - (architecture in ("gemma3", "gpt_neox"))
    assert len(calls) == (num_layers + num_again) * len(IDS)


def test_layers_are_computed_again_for_long_documents_only(load: Load) -> None:
    model = load("llama").model
    layer = model.get_submodule("model.layers.0")
    # 2 layers of 32 float32 numbers: 256 bytes for each token
    with checkpointed_layers(model, 2**18):
        assert "forward" not in vars(layer)
    with checkpointed_layers(model, 2**18 + 1):
        assert "forward" in vars(layer)
    assert "forward" not in vars(layer)


@pytest.mark.parametrize("most_kept", [0, 2**26])
def test_a_model_in_several_places_gives_the_same_gradient(
    load: Load,
    make_factors: MakeFactors,
    documents: Documents,
    tmp_path: Path,
    most_kept: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("workers.gradient.MOST_KEPT_BYTES", most_kept)
    loaded = load("llama")
    factors = make_factors(loaded, "yarn", 1.1)
    plain = gradients(NeedleScoring(loaded, documents).score_with_gradient(factors, IDS))
    places = {"model.layers.0": "disk", "model.layers.1": "disk"}
    parts = ["model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "model.rotary_emb", "lm_head"]
    model = dispatch_model(loaded.model, {part: places.get(part, "cpu") for part in parts}, offload_dir=str(tmp_path))
    spread = replace(loaded, model=model, patch=RopePatch(model), device=input_device(model))
    scoring = NeedleScoring(spread, documents)
    for _ in range(2):
        assert np.array_equal(gradients(scoring.score_with_gradient(factors, IDS)), plain)


def test_bfloat16_gives_about_the_gradient_of_float32(
    save_model: Callable[[PreTrainedConfig], Path],
    make_config: Callable[[str], PreTrainedConfig],
    make_factors: MakeFactors,
    documents: Documents,
) -> None:
    config = make_config("llama")
    config.initializer_range = 0.1  # attention that is less sharp, so that 8 bits are enough
    folder = str(save_model(config))
    found = []
    for precision in ("float32", "bfloat16"):
        name: Any = precision
        loaded = load_model(folder, dtype=name, device="cpu")
        factors = make_factors(loaded, "yarn", 1.1)
        found.append(gradients(NeedleScoring(loaded, documents).score_with_gradient(factors, IDS)))
    exact, rough = found
    # A product of some ten roundings of 2^-9 each, over a few sums
    assert np.abs(rough - exact).max() < 0.1 * np.abs(exact).max()


def test_a_caller_in_inference_mode_gets_the_same_gradient(
    load: Load, make_factors: MakeFactors, documents: Documents
) -> None:
    loaded = load("llama")
    factors = make_factors(loaded, "yarn", 1.1)
    expected = gradients(NeedleScoring(loaded, documents).score_with_gradient(factors, IDS))
    with torch.inference_mode():
        scoring = NeedleScoring(loaded, documents)
        assert np.array_equal(gradients(scoring.score_with_gradient(factors, IDS)), expected)
    assert not loaded.model(torch.zeros(1, 8, dtype=torch.int64)).logits.requires_grad


def test_too_little_memory_for_the_way_back_is_a_failure_of_that_document_alone(
    load: Load, make_factors: MakeFactors, documents: Documents
) -> None:
    loaded = load("llama")
    scoring = NeedleScoring(loaded, documents)

    def fill(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if output.requires_grad and output.shape[1] == documents[1].num_answer_tokens + 1:
            # More than any address space has
            output.register_hook(lambda gradient: torch.empty(2**56))  # type: ignore[no-untyped-call]

    loaded.model.get_submodule("lm_head").register_forward_hook(fill)
    measured = scoring.score_with_gradient(make_factors(loaded, "linear"), IDS)
    assert str(measured[1].failure).startswith("out of memory: ")
    assert measured[1].gradient is None
    assert len(gradients([measured[0], *measured[2:]])) == 3


def test_a_loss_or_a_gradient_that_is_not_finite_is_a_failure_with_its_reason(
    load: Load, make_factors: MakeFactors, documents: Documents
) -> None:
    loaded = load("llama")
    scoring = NeedleScoring(loaded, documents)
    factors = make_factors(loaded, "linear")
    head = loaded.model.get_submodule("lm_head")
    hook = head.register_forward_hook(lambda module, args, output: output * math.nan)
    assert [measurement.failure for measurement in scoring.score_with_gradient(factors, IDS[:1])] == [
        "loss is not finite: nan over the answer of 3 tokens"
    ]
    hook.remove()
    # The root of 0 has an infinite slope
    head.register_forward_hook(lambda module, args, output: output + (output - output.detach()).sqrt())
    assert [measurement.failure for measurement in scoring.score_with_gradient(factors, IDS[:1])] == [
        "gradient is not finite: 5 of its numbers"
    ]


def reversed_pairs(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    return cos.flip(-1), sin.flip(-1)


def turned_back(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    return cos, -sin


@pytest.mark.parametrize("change", [reversed_pairs, turned_back, torch.complex])
def test_an_unknown_layout_is_refused(
    load: Load, make_factors: MakeFactors, documents: Documents, change: Callable[[Tensor, Tensor], object]
) -> None:
    loaded = load("llama")
    scoring = NeedleScoring(loaded, documents)
    rotary = next(module for module in loaded.model.modules() if hasattr(module, "inv_freq"))
    forward = rotary.forward
    rotary.forward = lambda x, position_ids: change(*forward(x, position_ids))
    message = r"^a rotary module must return cos and sin with .*, got something else from LlamaRotaryEmbedding\. Choose"
    with pytest.raises(ValueError, match=message):
        scoring.score_with_gradient(make_factors(loaded, "linear"), IDS)
    assert not rotary._forward_hooks


def test_factors_for_another_model_are_a_failure(load: Load, make_factors: MakeFactors, documents: Documents) -> None:
    scoring = NeedleScoring(load("llama"), documents)
    failed = scoring.score_with_gradient(make_factors(load("qwen3"), "linear"), IDS)
    assert all("ValueError: factors must be for rotary_dim 8" in str(measurement.failure) for measurement in failed)
    assert [measurement.document for measurement in failed] == IDS


def test_a_local_scorer_gives_gradients_where_they_are_asked_for_at_every_try(
    load: Load, make_factors: MakeFactors, documents: Documents
) -> None:
    loaded = load("llama")
    scoring = NeedleScoring(loaded, documents)
    factors = make_factors(loaded, "linear")
    expected = gradients(scoring.score_with_gradient(factors, IDS))
    tried: list[nn.Module] = []

    def refuse_once(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        tried.append(module)
        if len(tried) == 1:
            raise RuntimeError("not now")

    loaded.model.register_forward_pre_hook(refuse_once)
    scorer = LocalScorer(scoring, documents)
    scorer.submit(Task(factors, tuple(IDS), with_gradient=True))
    scorer.submit(Task(factors, tuple(IDS)))
    assert np.array_equal(gradients(scorer.collect()), expected)
    assert scorer.num_retries == 1
    assert [measurement.gradient for measurement in scorer.collect()] == [None] * 4


def test_a_scoring_without_gradients_is_not_asked_for_them(
    acting: Callable[[Callable[[str], object]], ScoringFactory], documents: Documents, tasks: list[Task]
) -> None:
    scorer = LocalScorer(acting(lambda document_id: None)(documents), documents, max_retries=0)
    scorer.submit(replace(tasks[0], with_gradient=True))
    assert [measurement.failure for measurement in scorer.collect()] == [
        "ValueError: a task with gradients must go to a scoring that has them, got ActingScoring. Choose a search that "
        "needs none."
    ]
