"""The 8-bit copy: what it computes, what it shares, who is scored by it, and who is refused."""

import copy
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from needles.document import NeedleDocument
from rope.factors import RescaleFactors
from workers.local import LocalScorer
from workers.model import LoadedModel, load_model
from workers.quantized import RankedScoring, load_ranked_scoring, ranking_model
from workers.rope_patch import RopePatch
from workers.scorer import Task
from workers.scoring import NeedleScoring

Load = Callable[[str], LoadedModel]
MakeFactors = Callable[..., RescaleFactors]
Documents = list[NeedleDocument]

SHARED = ("model.embed_tokens.weight", "model.layers.0.input_layernorm.weight", "lm_head.weight")


@pytest.fixture
def _torchao() -> None:
    """Skips a test where the package of the extra is missing."""
    pytest.importorskip("torchao", reason="torchao is not installed: pip install 'ropewalk[quantized]'")


@pytest.fixture
def splits(documents: Documents) -> Documents:
    """The four documents, two of them of other splits than search."""
    return [*documents[:2], replace(documents[2], split="validation"), replace(documents[3], split="heldout")]


def logits(model: PreTrainedModel, input_ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=input_ids, use_cache=False).logits
    return found


def dequantized(weight: Any) -> torch.Tensor:
    """What a weight of torchao's stands for."""
    found: torch.Tensor = weight.dequantize()
    return found


@pytest.mark.usefixtures("_torchao")
def test_int8_weights_lie_half_a_step_off_and_multiply_as_what_they_stand_for(
    architecture: str, load: Load, input_ids: torch.Tensor
) -> None:
    model = load(architecture).model
    ranking, rounded = ranking_model(model, "int8"), copy.deepcopy(model)
    names = [
        name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and "layers." in name
    ]
    assert names
    for name in names:
        weight, stands_for = model.get_parameter(f"{name}.weight"), dequantized(ranking.get_parameter(f"{name}.weight"))
        # 256 steps from -largest to largest of each output; the last half step is cut off at 127
        half_step = weight.abs().amax(dim=1, keepdim=True) / 127.5 / 2
        assert ((stands_for - weight).abs() <= half_step * (1 + 1e-4)).all()
        rounded.get_submodule(name).weight = torch.nn.Parameter(stands_for, requires_grad=False)
    ours = logits(ranking, input_ids)
    # float32 products that are scaled before or after they are summed, through two layers
    torch.testing.assert_close(ours, logits(rounded, input_ids), rtol=1e-3, atol=1e-3)
    assert not torch.equal(ours, logits(model, input_ids))


@pytest.mark.usefixtures("_torchao")
def test_what_is_not_quantised_is_shared_and_the_model_stays_as_it_was(load: Load, input_ids: torch.Tensor) -> None:
    model = load("llama").model
    before = logits(model, input_ids)
    ranking = ranking_model(model, "int8")
    for name in SHARED:
        assert ranking.get_parameter(name) is model.get_parameter(name)
    assert not any(parameter.requires_grad for parameter in ranking.parameters())
    assert not ranking.training
    assert torch.equal(logits(model, input_ids), before)
    assert all(type(parameter.data) is torch.Tensor for parameter in model.parameters())


@pytest.mark.usefixtures("_torchao")
def test_the_copy_rotates_by_itself(load: Load, make_factors: MakeFactors, input_ids: torch.Tensor) -> None:
    loaded = load("llama")
    ranking = ranking_model(loaded.model, "int8")
    patch, factors = RopePatch(ranking), make_factors(loaded, "yarn")
    native, of_copy = logits(loaded.model, input_ids), logits(ranking, input_ids)
    with patch:
        patch.install(factors)
        assert not torch.equal(logits(ranking, input_ids), of_copy)
        assert torch.equal(logits(loaded.model, input_ids), native)
    assert torch.equal(logits(ranking, input_ids), of_copy)


@pytest.mark.usefixtures("_torchao")
def test_search_documents_are_ranked_and_all_others_are_measured_exactly(
    model_folder: Callable[[str], Path], make_factors: MakeFactors, splits: Documents
) -> None:
    load = partial(load_model, str(model_folder("llama")), dtype="float32", device="cpu")
    factors = make_factors(load(), "yarn")
    ids = [document.id for document in splits]
    exact = NeedleScoring(load(), splits).score(factors, ids)
    found = load_ranked_scoring(splits, load=load, weights="int8").score(factors, ids)
    pairs = list(zip(found, exact, strict=True))
    assert [ours.document for ours in found] == ids
    # 8 bits change a loss of this random model by some percent, and never not at all
    assert all(ours.sum_nll == pytest.approx(theirs.sum_nll, rel=0.1) for ours, theirs in pairs)
    assert [ours.sum_nll == theirs.sum_nll for ours, theirs in pairs] == [False, False, True, True]


def test_each_split_has_its_model_in_whatever_order_documents_are_asked_for(
    load: Load, make_factors: MakeFactors, splits: Documents
) -> None:
    # Another architecture in the place of the copy: which model measured is plain to see, and torchao is not needed
    exact, ranking = load("llama"), load("mistral")
    factors = make_factors(exact, "linear")
    scoring = RankedScoring(splits, exact=exact, ranking=ranking)
    expected = {
        document.id: NeedleScoring(ranking if document.split == "search" else exact, splits).score(
            factors, [document.id]
        )[0]
        for document in splits
    }
    for ids in (["document-3", "document-0", "document-2"], ["document-1"], ["document-2"], []):
        losses = [found.sum_nll for found in scoring.score(factors, ids)]
        # A batch keeps the positions from its longest answer on, and products of other sizes round otherwise
        assert losses == pytest.approx([expected[name].sum_nll for name in ids], rel=1e-6)


def test_a_split_without_documents_needs_no_scoring(load: Load, make_factors: MakeFactors, splits: Documents) -> None:
    loaded = load("llama")
    for some in (splits[:2], splits[2:]):
        scoring = RankedScoring(some, exact=loaded, ranking=loaded)
        assert len(scoring.score(make_factors(loaded, "linear"), [document.id for document in some])) == 2
    with pytest.raises(ValueError, match=r"^scoring must have at least one document, got none\."):
        RankedScoring([], exact=loaded, ranking=loaded)


def test_a_gradient_is_refused(load: Load, make_factors: MakeFactors, splits: Documents) -> None:
    loaded = load("llama")
    scorer = LocalScorer(RankedScoring(splits, exact=loaded, ranking=loaded), splits)
    scorer.submit(Task(make_factors(loaded, "linear"), ("document-0",), with_gradient=True))
    (measurement,) = scorer.collect()
    assert measurement.failure is not None


def test_a_missing_package_is_named(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torchao", "torchao.quantization"):
        monkeypatch.setitem(sys.modules, name, None)
    message = r"^--ranking-weights int8 must have the package torchao, got: .*Install ropewalk\[quantized\], or leave"
    with pytest.raises(ValueError, match=message) as refusal:
        ranking_model(load("llama").model, "int8")
    assert "\n" not in str(refusal.value)


def test_fp8_needs_bfloat16_and_a_gpu_that_multiplies_it(load: Load) -> None:
    model = load("llama").model
    with pytest.raises(ValueError, match=r"^--ranking-weights fp8 must go with --dtype bfloat16, got torch\.float3"):
        ranking_model(model, "fp8")
    message = (
        r"^--ranking-weights fp8 must have a GPU of compute capability 8\.9 or more \(Ada, Hopper, Blackwell\), got "
        r"the CPU\. Use int8, or leave it out\.$"
    )
    with pytest.raises(ValueError, match=message):
        ranking_model(model.to(torch.bfloat16), "fp8")  # type: ignore[arg-type]


def test_offloaded_weights_are_refused(load: Load) -> None:
    model = load("llama").model
    model.get_submodule("model.layers.1").to("meta")
    with pytest.raises(ValueError, match=r"^--ranking-weights must have all weights on devices, got some that are off"):
        ranking_model(model, "int8")


@pytest.mark.usefixtures("_torchao")
def test_a_model_without_linear_layers_is_refused(load: Load) -> None:
    model = load("llama").model
    model.model.layers = torch.nn.ModuleList()
    with pytest.raises(ValueError, match=r"^--ranking-weights int8 must have linear layers to work on, got none that"):
        ranking_model(model, "int8")
