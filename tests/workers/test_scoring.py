"""NeedleScoring: the loss of the answer alone, the same in batches, and failures as values."""

import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import dispatch_model  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from needles.document import NeedleDocument
from results.measurement import Measurement, candidate_key
from rope.factors import RescaleFactors
from workers.local import LocalScorer
from workers.model import LoadedModel, input_device, load_model
from workers.rope_patch import RopePatch
from workers.scorer import ClusterError, ScoringFactory, Task, failure_reason
from workers.scoring import NeedleScoring

# float32 sums in another order: 2^-24 over some hundred terms of losses of about 10
TOLERANCE = 1e-5

Load = Callable[[str], LoadedModel]
MakeFactors = Callable[..., RescaleFactors]
Documents = list[NeedleDocument]


def losses(measurements: Sequence[Measurement]) -> list[float]:
    assert [measurement.failure for measurement in measurements] == [None] * len(measurements)
    return [measurement.sum_nll / measurement.num_tokens for measurement in measurements]


def ids_of(documents: Documents) -> list[str]:
    return [document.id for document in documents]


def reasons(measurements: Sequence[Measurement]) -> list[str]:
    assert all(math.isnan(measurement.sum_nll) and measurement.num_tokens == 0 for measurement in measurements)
    return [str(measurement.failure) for measurement in measurements]


def test_the_loss_is_that_of_the_plain_forward_with_labels(
    architecture: str, load: Load, make_factors: MakeFactors, documents: Documents
) -> None:
    loaded = load(architecture)
    factors = make_factors(loaded, "yarn", 1.1)
    measured = losses(NeedleScoring(loaded, documents).score(factors, ids_of(documents)))
    loaded.patch.install(factors)
    for document, loss in zip(documents, measured, strict=True):
        input_ids = torch.from_numpy(document.token_ids.astype(np.int64))[None]
        labels = input_ids.clone()
        labels[:, : document.answer_start] = -100
        with torch.inference_mode():
            plain = loaded.model(input_ids=input_ids, labels=labels).loss.item()
        assert loss == pytest.approx(plain, rel=TOLERANCE)


def test_a_batch_is_measured_as_its_documents_one_by_one(
    architecture: str, load: Load, make_factors: MakeFactors, documents: Documents
) -> None:
    loaded = load(architecture)
    scoring = NeedleScoring(loaded, documents)
    factors = make_factors(loaded, "linear")
    together = losses(scoring.score(factors, ids_of(documents)))
    alone = [losses(scoring.score(factors, [document]))[0] for document in ids_of(documents)]
    assert together == pytest.approx(alone, rel=TOLERANCE)
    assert losses(scoring.score(factors, ids_of(documents)[::-1])) == pytest.approx(alone[::-1], rel=TOLERANCE)


def test_a_measurement_says_what_was_measured(load: Load, make_factors: MakeFactors, documents: Documents) -> None:
    loaded = load("llama")
    factors = make_factors(loaded, "linear")
    measurement = NeedleScoring(loaded, documents).score(factors, ["document-3"])[0]
    assert measurement.candidate == candidate_key(factors)
    assert (measurement.document, measurement.split, measurement.depth) == ("document-3", "search", 0.75)
    assert (measurement.num_tokens, measurement.failure) == (6, None)
    assert 0 < measurement.seconds < 60


def test_the_same_task_twice_gives_the_same_bits_and_leaves_the_model_alone(
    load: Load, make_factors: MakeFactors, documents: Documents, input_ids: Tensor
) -> None:
    loaded = load("llama")
    scoring = NeedleScoring(loaded, documents)
    factors = replace(make_factors(loaded, "yarn", 1.1), num_start_tokens=4)
    before = loaded.model(input_ids).logits
    first = losses(scoring.score(factors, ids_of(documents)))
    scoring.score(make_factors(loaded, "linear"), ids_of(documents))
    assert losses(scoring.score(factors, ids_of(documents))) == first
    assert torch.equal(loaded.model(input_ids).logits, before)


def test_bfloat16_gives_about_the_loss_of_float32(
    load: Load, model_folder: Callable[[str], Path], make_factors: MakeFactors, documents: Documents
) -> None:
    exact = load("llama")
    rough = load_model(str(model_folder("llama")), dtype="bfloat16", device="cpu")
    factors = make_factors(exact, "yarn")
    expected = losses(NeedleScoring(exact, documents).score(factors, ids_of(documents)))
    # bfloat16 has 8 bits; a logit of 10 is good to 0.04, and attention adds its own
    measured = losses(NeedleScoring(rough, documents).score(factors, ids_of(documents)))
    assert measured == pytest.approx(expected, rel=0.05)
    assert measured != expected


def test_logits_are_computed_for_the_answer_only(load: Load, make_factors: MakeFactors, documents: Documents) -> None:
    loaded = load("llama")
    scoring = NeedleScoring(loaded, documents)
    shapes: list[tuple[int, ...]] = []
    head = loaded.model.get_submodule("lm_head")
    head.register_forward_hook(lambda module, args, output: shapes.append(tuple(output.shape)))
    scoring.score(make_factors(loaded, "linear"), ids_of(documents))
    assert shapes == [(4, 7, 260)]  # the longest answer has 6 tokens; the last logits predict nothing


def fill_memory_above(loaded: LoadedModel, num_documents: int) -> RemovableHandle:
    """Makes forwards of more documents ask for more than any address space has: torch's own allocator refuses it."""

    def fill(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        if len(kwargs["input_ids"]) > num_documents:
            torch.empty(2**56)

    return loaded.model.register_forward_pre_hook(fill, with_kwargs=True)


def test_too_little_memory_is_a_failure_with_its_reason(
    load: Load, make_factors: MakeFactors, documents: Documents, input_ids: Tensor
) -> None:
    loaded = load("llama")
    scoring = NeedleScoring(loaded, documents)
    before = loaded.model(input_ids).logits
    hook = fill_memory_above(loaded, 0)
    failed = scoring.score(make_factors(loaded, "linear"), ids_of(documents))
    hook.remove()
    assert len(failed) == 4
    assert all(reason.startswith("out of memory: ") for reason in reasons(failed))
    assert torch.equal(loaded.model(input_ids).logits, before)


def test_a_batch_that_does_not_fit_is_split_and_that_is_remembered(
    load: Load, make_factors: MakeFactors, documents: Documents, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = load("llama")
    scoring = NeedleScoring(loaded, documents)
    factors = make_factors(loaded, "linear")
    whole = losses(scoring.score(factors, ids_of(documents)))
    fill_memory_above(loaded, 2)
    for _ in range(2):
        split = scoring.score(factors, ids_of(documents))
        assert [measurement.document for measurement in split] == ids_of(documents)
        assert losses(split) == pytest.approx(whole, rel=TOLERANCE)
    assert caplog.text.count("4 documents of 128 tokens do not fit at once, from now on 2 do: out of memory: ") == 1


def test_an_error_that_may_come_from_a_broken_process_is_raised(
    load: Load, make_factors: MakeFactors, documents: Documents, input_ids: Tensor
) -> None:
    loaded = load("llama")
    scoring = NeedleScoring(loaded, documents)
    before = loaded.model(input_ids).logits

    def break_down(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    hook = loaded.model.register_forward_pre_hook(break_down)
    with pytest.raises(RuntimeError, match="device-side assert"):
        scoring.score(make_factors(loaded, "linear"), ids_of(documents))
    hook.remove()
    assert torch.equal(loaded.model(input_ids).logits, before)


@pytest.mark.parametrize("num_start_tokens", [0, 4])
def test_a_model_in_several_places_gives_the_same_losses(
    load: Load, make_factors: MakeFactors, documents: Documents, tmp_path: Path, num_start_tokens: int
) -> None:
    loaded = load("llama")
    factors = replace(make_factors(loaded, "yarn", 1.1), num_start_tokens=num_start_tokens)
    plain = losses(NeedleScoring(loaded, documents).score(factors, ids_of(documents)))
    places = {"model.layers.0": "disk", "model.embed_tokens": "disk", "": "cpu"}
    parts = ["model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "model.rotary_emb", "lm_head"]
    model = dispatch_model(loaded.model, {part: places.get(part, "cpu") for part in parts}, offload_dir=str(tmp_path))
    assert next(model.get_submodule("model.layers.0").parameters()).is_meta
    spread = replace(loaded, model=model, patch=RopePatch(model), device=input_device(model))
    scoring = NeedleScoring(spread, documents)
    for _ in range(2):
        assert losses(scoring.score(factors, ids_of(documents))) == plain


def test_out_of_memory_has_one_name_whoever_says_so() -> None:
    assert failure_reason(MemoryError()) == "out of memory: no message"
    assert failure_reason(torch.OutOfMemoryError("CUDA out of memory.\nTried")) == "out of memory: CUDA out of memory."
    assert failure_reason(RuntimeError("\n  bad shape \n")) == "RuntimeError: bad shape"


def test_out_of_memory_is_known_without_torch() -> None:
    program = (
        "import sys; from workers import scorer, actor, local; assert 'torch' not in sys.modules; "
        "kind = type('OutOfMemoryError', (RuntimeError,), {}); print(scorer.failure_reason(kind('CUDA')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "out of memory: CUDA\n"


def test_a_loss_that_is_not_finite_is_a_failure_of_that_document_alone(
    load: Load, make_factors: MakeFactors, documents: Documents
) -> None:
    loaded = load("llama")
    scoring = NeedleScoring(loaded, documents)

    def spoil(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        output = output.clone()
        output[1, -2] = torch.nan
        return output

    loaded.model.get_submodule("lm_head").register_forward_hook(spoil)
    measured = scoring.score(make_factors(loaded, "linear"), ids_of(documents))
    assert reasons(measured[1:2]) == ["loss is not finite: nan over the answer of 4 tokens"]
    assert len(losses([measured[0], *measured[2:]])) == 3


def test_factors_for_another_model_are_a_failure(load: Load, make_factors: MakeFactors, documents: Documents) -> None:
    scoring = NeedleScoring(load("llama"), documents)
    failed = scoring.score(make_factors(load("qwen3"), "linear"), ids_of(documents))
    assert all("ValueError: factors must be for rotary_dim 8 and base 10000" in reason for reason in reasons(failed))


def test_scoring_refuses_to_begin_without_an_effect(load: Load, documents: Documents) -> None:
    loaded = load("llama")
    rotary = next(module for module in loaded.model.modules() if hasattr(module, "inv_freq"))
    rotary.forward = lambda x, position_ids: (torch.ones(1, 64, 8), torch.zeros(1, 64, 8))
    with pytest.raises(ValueError, match=r"rescale factors must change the logits"):
        NeedleScoring(loaded, documents)


def test_scoring_without_documents_is_refused(load: Load) -> None:
    with pytest.raises(ValueError, match=r"must have at least one document, got none"):
        NeedleScoring(load("llama"), [])


def test_two_documents_of_one_id_are_refused(load: Load, documents: Documents) -> None:
    with pytest.raises(ValueError, match=r"must have distinct ids, got document-1 2 times"):
        NeedleScoring(load("llama"), [*documents, documents[1]])


def test_documents_of_another_tokenizer_are_refused(load: Load, documents: Documents) -> None:
    foreign = replace(documents[0], id="foreign", token_ids=documents[0].token_ids + 1000)
    with pytest.raises(ValueError, match=r"token ids below 260, the model's vocabulary, got 12.. in foreign"):
        NeedleScoring(load("llama"), [*documents, foreign])


def test_a_local_scorer_measures_tasks_in_the_order_they_came(
    load: Load, make_factors: MakeFactors, documents: Documents
) -> None:
    loaded = load("llama")
    scoring = NeedleScoring(loaded, documents)
    scorer = LocalScorer(scoring, documents)
    assert scorer.capacity == 1
    assert scorer.collect() == []
    factors = make_factors(loaded, "linear")
    for batch in (("document-0", "document-2"), ("document-1",)):
        scorer.submit(Task(factors, batch))
    first, second = scorer.collect(), scorer.collect()
    assert [measurement.document for measurement in [*first, *second]] == ["document-0", "document-2", "document-1"]
    assert losses(first) == losses(scoring.score(factors, ["document-0", "document-2"]))
    scorer.submit(Task(factors, ("document-0",)))
    scorer.close()
    assert scorer.collect() == []


def test_a_local_scorer_tries_once_more_and_then_gives_up(
    acting: Callable[[Callable[[str], object]], ScoringFactory], documents: Documents, tasks: list[Task]
) -> None:
    tried: list[str] = []

    def refuse(document_id: str) -> None:
        tried.append(document_id)
        if document_id == "document-1" or tried == ["document-0"]:
            raise RuntimeError("not now\nnor later")

    scorer = LocalScorer(acting(refuse)(documents), documents)
    for task in tasks[:2]:
        scorer.submit(task)
    assert [measurement.failure for measurement in scorer.collect()] == [None]
    assert reasons(scorer.collect()) == ["given up after 2 tries: RuntimeError: not now"]
    assert (scorer.num_retries, scorer.num_workers, scorer.accelerators) == (2, 1, ())
    assert tried == ["document-0", "document-0", "document-1", "document-1"]


def test_a_local_scorer_ends_the_run_at_the_third_task_in_a_row_that_raises(
    acting: Callable[[Callable[[str], object]], ScoringFactory], documents: Documents, tasks: list[Task]
) -> None:
    def refuse(document_id: str) -> None:
        if document_id != "document-0":
            raise RuntimeError("CUDA error: device-side assert triggered")

    scorer = LocalScorer(acting(refuse)(documents), documents)
    for number in (1, 2, 0, 1, 2, 3):
        scorer.submit(tasks[number])
    measured = [measurement.failure for _ in range(5) for measurement in scorer.collect()]
    failure = "given up after 2 tries: RuntimeError: CUDA error: device-side assert triggered"
    assert measured == [failure, failure, None, failure, failure]
    message = r"able to score here, got 3 tasks in a row that raised, the last: RuntimeError: CUDA error: .* --resume"
    with pytest.raises(ClusterError, match=message):
        scorer.collect()


def test_an_interruption_passes_through_the_local_scorer(
    acting: Callable[[Callable[[str], object]], ScoringFactory], documents: Documents, tasks: list[Task]
) -> None:
    def interrupt(document_id: str) -> None:
        raise KeyboardInterrupt

    scorer = LocalScorer(acting(interrupt)(documents), documents)
    scorer.submit(tasks[0])
    with pytest.raises(KeyboardInterrupt):
        scorer.collect()
