"""`ropewalk finetune` on the reference model: what is measured, what is saved, and what is taken up."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from needles.corpus import read_split
from needles.document import NeedleDocument
from results.report import report_html
from results.report_parts.tuning_record import is_tuning, read_tuning
from results.tuning_outcome import Outcome, measured_from, measured_json, outcome_rows
from rope.yarn import yarn_factors
from search.cli import build_finetuning_parser
from search.finetune.config import FinetuneConfig, MeasureConfig
from search.finetune.outcome import Yardstick, build_yardstick
from search.finetune.run import run_finetune
from workers.model import describe_model, load_model
from workers.reference.documents import Documents
from workers.tuning import cluster
from workers.tuning.cluster import TrainingJob, TrainingWorkers
from workers.tuning.kept_logits import divergence, log_probabilities
from workers.tuning.mixture_config import MixtureConfig
from workers.tuning.trainer import TrainingResult
from workers.tuning.training_config import TrainingConfig

CONFIGS = Path(__file__).parents[2] / "search" / "configs"
MODEL = "workers/reference/model"
CORPUS = "workers/reference/tom_sawyer.txt"
MEASURE = MeasureConfig(corpus=CORPUS, num_target=2, num_original=3, num_texts=1, text_length=600)
TEMPERATURE = 1.2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents and factors for 512 tokens, twice the model's window."""
    path = tmp_path_factory.mktemp("finetune")
    text = read_split(CORPUS, "search", num_characters=10**6).text
    documents = Documents(AutoTokenizer.from_pretrained(MODEL), text, np.random.default_rng(0))
    drawn = [documents.draw(kind, length) for length in (256, 512) for kind in ("needle", "text") for _ in range(8)]
    lines = [json.dumps(document._asdict()) for document in drawn]
    (path / "documents.jsonl").write_text("\n".join(lines), encoding="utf-8")
    factors = yarn_factors(32, 500.0, original_length=256, target_length=512)
    factors.with_temperature(TEMPERATURE).save(path / "warm.json")
    factors.save(path / "plain.json")
    return path


def config_of(folder: Path, **changes: Any) -> FinetuneConfig:
    settings: dict[str, Any] = {
        "model": MODEL,
        "factors": str(folder / "warm.json"),
        "data": str(folder / "documents.jsonl"),
        "tokens": str(folder / "tokens"),
        "dtype": "float32",
        "weights": "float32",
        "device": "cpu",
        "mixture": MixtureConfig(long_share=0.5),
        "training": TrainingConfig(num_steps=2, micro_batches_per_step=2, learning_rate=1e-3),
        "measure": MEASURE,
    }
    return FinetuneConfig(**settings | changes)


@pytest.fixture(scope="module")
def outcome(folder: Path) -> Outcome:
    """Of two steps with a temperature of 1.2."""
    return run_finetune(config_of(folder, run_dir=str(folder / "run")))


def test_the_untuned_model_is_measured_as_plain_transformers_measures_it(outcome: Outcome) -> None:
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)

    assert outcome.before.needle_original == pytest.approx(needle_perplexity(model, original_documents()), rel=1e-5)


def test_the_saved_folder_is_what_plain_transformers_reads_with_the_long_factors(
    outcome: Outcome, folder: Path
) -> None:
    plain = AutoModelForCausalLM.from_pretrained(folder / "run" / "model", dtype=torch.float32)

    # float32 in another order: losses of some nats agree to 1e-5
    assert outcome.after.needle_target == pytest.approx(needle_perplexity(plain, target_documents()), rel=1e-4)


def test_what_plain_transformers_costs_in_the_short_window_is_what_plain_transformers_computes(
    outcome: Outcome, folder: Path
) -> None:
    plain = AutoModelForCausalLM.from_pretrained(folder / "run" / "model", dtype=torch.float32)

    served = outcome.after_plain_transformers
    assert served is not None
    assert served.needle_original == pytest.approx(needle_perplexity(plain, original_documents()), rel=1e-4)
    assert served.needle_original != pytest.approx(outcome.after.needle_original, rel=1e-6)


def test_without_a_temperature_plain_transformers_serves_the_short_window_as_it_was_trained(folder: Path) -> None:
    outcome = run_finetune(
        config_of(folder, factors=str(folder / "plain.json"), run_dir=str(folder / "plain"), weights="model")
    )
    plain = AutoModelForCausalLM.from_pretrained(folder / "plain" / "model", dtype=torch.float32)

    assert outcome.after_plain_transformers is None
    assert outcome.after.needle_original == pytest.approx(needle_perplexity(plain, original_documents()), rel=1e-4)
    assert plain.config.dtype == torch.float32, "it was asked for"
    saved = json.loads((folder / "plain" / "model" / "config.json").read_text(encoding="utf-8"))
    assert saved["dtype"] == "bfloat16", "as the model's own files are"
    assert saved["rope_parameters"]["long_factor"] == list(json.loads((folder / "plain.json").read_text())["values"])
    assert saved["rope_parameters"]["short_factor"] == [1.0] * 16
    assert saved["max_position_embeddings"] == 512
    tokenizer = AutoTokenizer.from_pretrained(folder / "plain" / "model")
    assert tokenizer("a needle").input_ids == AutoTokenizer.from_pretrained(MODEL)("a needle").input_ids


def test_training_changes_the_model_and_both_kinds_of_packs_are_logged(outcome: Outcome, folder: Path) -> None:
    assert outcome.kept.mean_divergence > 0
    assert outcome.before != outcome.after
    # 2 steps of 2 packs of 512 tokens, half of them short: in each stretch all tokens but the first are predicted
    assert outcome.num_tokens["long"] == 2 * 511
    assert outcome.num_tokens["short"] == 2 * (512 - 2)
    assert outcome.num_steps == 2


def test_a_finetuning_that_lost_its_outcome_is_measured_again_and_not_trained_again(
    outcome: Outcome, folder: Path, tmp_path: Path
) -> None:
    run = folder / "run"
    weights = run / "model" / "model.safetensors"
    trained_at = weights.stat().st_mtime_ns
    (run / "outcome.json").unlink()

    again = run_finetune(config_of(folder, run_dir=str(run)))

    assert not (run / "before.npy").exists(), "it is large, and of no use afterwards"
    assert weights.stat().st_mtime_ns == trained_at
    assert again == outcome


def test_a_finished_finetuning_is_shown_again(
    outcome: Outcome, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = (folder / "run" / "outcome.json").stat().st_mtime_ns

    again = run_finetune(config_of(folder, run_dir=str(folder / "run")))

    assert again == outcome
    assert (folder / "run" / "outcome.json").stat().st_mtime_ns == written
    shown = capsys.readouterr().out
    assert "needle perplexity at 512" in shown
    assert "before" in shown
    assert "after" in shown


def test_an_outcome_survives_its_file() -> None:
    measured = measured_from(
        {"needle_target": 1.5, "needle_original": None, "plain_target": 9.0, "plain_original": 8.0}
    )

    assert math.isnan(measured.needle_original)
    assert measured_json(measured)["needle_original"] is None


def test_the_report_shows_the_table_and_the_loss_by_window(outcome: Outcome, folder: Path) -> None:
    assert is_tuning(folder / "run")
    html = report_html([read_tuning(folder / "run")])

    for row in outcome_rows(outcome):
        assert row.measured in html
        assert row.after in html
    assert "Training loss by kind of window" in html
    assert "long packs" in html
    assert "short packs" in html


def test_divergence_is_that_of_torch() -> None:
    rng = np.random.default_rng(0)
    log_p, log_q = (torch.from_numpy(rng.normal(size=(5, 7))).log_softmax(-1) for _ in range(2))
    expected = functional.kl_div(log_q, log_p, log_target=True, reduction="sum")

    found = divergence(log_p.float().numpy(), log_q.float().numpy())

    assert found.sum_divergence == pytest.approx(float(expected), rel=1e-5)  # float32 inputs
    assert found.num_positions == 5
    assert found.num_same_top == int((log_p.argmax(-1) == log_q.argmax(-1)).sum())


def test_log_probabilities_are_those_of_the_plain_forward() -> None:
    loaded = load_model(MODEL, dtype="float32", device="cpu")
    text = np.arange(40, dtype=np.int32) + 5
    plain = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    with torch.inference_mode():
        expected = plain(input_ids=torch.from_numpy(text.astype(np.int64))[None]).logits[0].log_softmax(-1)

    found = log_probabilities(loaded, [text], None)

    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)  # float32, another order of sums


def test_measurements_do_not_depend_on_what_is_trained_on(folder: Path) -> None:
    description = describe_model(MODEL, original_length=256)
    one, other = (
        build_yardstick(MEASURE, description, corpus=CORPUS, column="text", target_length=512, seed=seed)
        for seed in (0, 1)
    )

    assert one.fingerprint != other.fingerprint
    heldout = read_split(CORPUS, "heldout", num_characters=10**6).text
    for document in one.target:
        assert document.split == "heldout"
        words = str(description.tokenizer.decode(document.token_ids[60:80]))
        assert words.strip()[:20] in heldout or document.needle.key in words


def test_workers_that_start_in_another_folder_find_model_and_data(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray Train gives each worker a working directory of its own, where relative paths lead nowhere."""

    def train_elsewhere(job: TrainingJob, workers: TrainingWorkers, *, resume: bool) -> TrainingResult:
        with monkeypatch.context() as there:
            there.chdir(tmp_path)
            return job.run(resume=resume, progress=False)

    monkeypatch.setattr(cluster, "train_on_cluster", train_elsewhere)
    here = {name: os.path.relpath(folder / name) for name in ("documents.jsonl", "tokens")}
    config = config_of(folder, workers=2, run_dir=str(tmp_path / "run"), tokens=here["tokens"])

    assert run_finetune(replace(config, data=f"both={here['documents.jsonl']}")).num_steps == 2
    assert not Path(MODEL).is_absolute()
    assert [path.name for path in tmp_path.iterdir()] == ["run"], "tokens are where the driver keeps them"


def test_sources_are_named_by_their_files_or_by_their_user(folder: Path) -> None:
    config = replace(config_of(folder), data="/data/books.jsonl, code=/data/x/,")

    assert config.sources == {"books": "/data/books.jsonl", "code": "/data/x/"}


def target_documents() -> Sequence[NeedleDocument]:
    return yardstick().target


def original_documents() -> Sequence[NeedleDocument]:
    return yardstick().original


def yardstick() -> Yardstick:
    description = describe_model(MODEL, original_length=256)
    return build_yardstick(MEASURE, description, corpus=CORPUS, column="text", target_length=512, seed=0)


@torch.inference_mode()
def needle_perplexity(model: PreTrainedModel, documents: Sequence[NeedleDocument]) -> float:
    """exp of the mean over documents of the mean loss of the answer's tokens, by transformers' own forward."""
    losses = []
    for document in documents:
        ids = torch.from_numpy(document.token_ids.astype(np.int64))[None]
        logits = model(input_ids=ids, use_cache=False).logits[0, document.answer_start - 1 : -1]
        losses.append(functional.cross_entropy(logits, ids[0, document.answer_start :]).item())
    return math.exp(sum(losses) / len(losses))


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*finetune*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_read_by_the_command(path: Path) -> None:
    parser = build_finetuning_parser()
    given = parser.instantiate(
        parser.parse_args(["--model=model", "--factors=factors.json", "--data=documents.jsonl", f"--config={path}"])
    )

    config = FinetuneConfig(**{name: given[name] for name in FinetuneConfig.__dataclass_fields__})

    assert config.training.num_steps > 1
    original = 256 if "demo" in path.stem else 8192
    assert config.mixture.resolve(original_length=original, target_length=16 * original).pack_length == 16 * original
