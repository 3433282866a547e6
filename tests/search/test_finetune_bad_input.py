"""What `ropewalk finetune` refuses, in one line, before it trains."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from rope.yarn import yarn_factors
from search.cli import main
from search.finetune.config import FinetuneConfig, MeasureConfig
from search.finetune.preparation import prepare
from workers.tuning.mixture_config import MixtureConfig
from workers.tuning.training_config import TrainingConfig

MODEL = "workers/reference/model"
CORPUS = "workers/reference/tom_sawyer.txt"
FACTORS = yarn_factors(32, 500.0, original_length=256, target_length=512)
SHORT, LONG = "A short text. " * 25, "A long text about nothing at all. " * 100


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Factors and documents of both windows."""
    FACTORS.save(tmp_path / "factors.json")
    write(tmp_path / "data.jsonl", [SHORT, LONG])
    return tmp_path


def write(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


def config_of(folder: Path, **changes: Any) -> FinetuneConfig:
    settings: dict[str, Any] = {
        "model": MODEL,
        "factors": str(folder / "factors.json"),
        "data": str(folder / "data.jsonl"),
        "tokens": str(folder / "tokens"),
        "dtype": "float32",
        "training": TrainingConfig(num_steps=1),
        "measure": MeasureConfig(corpus=CORPUS, num_target=1, num_original=1, num_texts=1, text_length=300),
    }
    return FinetuneConfig(**settings | changes)


def refusal(folder: Path, **changes: Any) -> str:
    with pytest.raises(ValueError) as refused:
        prepare(config_of(folder, **changes), folder / "run")
    assert not (folder / "run").exists(), "nothing is written for what cannot be trained"
    return str(refused.value)


def test_what_is_here_can_be_prepared(folder: Path) -> None:
    prepared = prepare(config_of(folder), folder / "run")

    assert len(prepared.packs) == 8
    assert prepared.factors.long == FACTORS
    assert set(prepared.factors.short.values) == {1.0}


@pytest.mark.parametrize("name", ["model", "factors", "data"])
def test_what_must_be_given_is_asked_for(folder: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"a fine-tuning must have --{name}, got none"):
        config_of(folder, **{name: " "})


def test_data_without_a_long_document_is_refused(folder: Path) -> None:
    write(folder / "data.jsonl", [SHORT, SHORT])

    assert "for long packs, got none" in refusal(folder)


def test_data_without_a_short_document_is_refused(folder: Path) -> None:
    write(folder / "data.jsonl", [LONG])

    assert "for short packs, got none" in refusal(folder)


def test_data_without_a_short_document_trains_long_packs_alone_where_that_is_asked_for(folder: Path) -> None:
    write(folder / "data.jsonl", [LONG])

    prepared = prepare(config_of(folder, mixture=MixtureConfig(long_share=1.0)), folder / "run")

    assert prepared.packs[0].window == "long"


def test_a_pack_that_cannot_hold_a_document_is_refused(folder: Path) -> None:
    assert "pack_length must hold a document of every bin" in refusal(folder, mixture=MixtureConfig(pack_length=200))


def test_a_file_that_cannot_be_read_is_named(folder: Path) -> None:
    (folder / "broken.jsonl").write_text('{"text": "cut of', encoding="utf-8")
    both = f"{folder / 'data.jsonl'},{folder / 'broken.jsonl'}"

    assert "broken.jsonl" in refusal(folder, data=both)


def test_a_file_that_cannot_be_read_is_left_out_where_that_is_asked_for(folder: Path) -> None:
    (folder / "broken.jsonl").write_text('{"text": "cut of', encoding="utf-8")
    both = f"{folder / 'data.jsonl'},{folder / 'broken.jsonl'}"

    assert len(prepare(config_of(folder, data=both, skip_unreadable=True), folder / "run").packs) == 8


def test_data_that_is_not_there_is_refused(folder: Path) -> None:
    assert "which does not exist" in refusal(folder, data=str(folder / "nothing"))


def test_two_sources_of_one_name_are_refused(folder: Path) -> None:
    with pytest.raises(
        ValueError, match=r"--data must have sources of distinct names, got data twice\. Write NAME=PATH"
    ):
        prepare(config_of(folder, data="a/data.jsonl,b/data.jsonl"), folder / "run")


def test_factors_of_another_model_are_refused(folder: Path) -> None:
    yarn_factors(64, 500.0, original_length=256, target_length=512).save(folder / "factors.json")

    assert "--factors must be for rotary_dim 32 as the model has it, got 64" in refusal(folder)


def test_factors_of_another_window_are_refused(folder: Path) -> None:
    assert "--factors must be for original_length 128 as the model has it, got 256" in refusal(
        folder, original_length=128
    )


def test_factors_of_a_longer_window_than_the_model_says_are_refused_unless_that_is_said(folder: Path) -> None:
    """Else the short window would be trained and measured beyond where the model's own rotation reaches."""
    yarn_factors(32, 500.0, original_length=320, target_length=512).save(folder / "factors.json")

    assert "--factors must be for original_length 256 as the model has it, got 320" in refusal(folder)
    prepared = prepare(config_of(folder, original_length=320), folder / "run")
    assert prepared.factors.short.original_length == 320


def test_factors_that_extend_nothing_are_refused(folder: Path) -> None:
    yarn_factors(32, 500.0, original_length=256, target_length=256).save(folder / "factors.json")

    assert "--factors must be for more than the original window of 256 tokens, got 256" in refusal(folder)


def test_a_measurement_needs_a_text(folder: Path) -> None:
    assert "--measure.corpus" in refusal(folder, measure=MeasureConfig())


def test_a_text_that_is_too_short_to_be_measured_is_refused(folder: Path) -> None:
    (folder / "corpus.txt").write_text("A sentence of a book. " * 800, encoding="utf-8")
    settings = MeasureConfig(
        corpus=str(folder / "corpus.txt"), num_target=1, num_original=1, num_texts=1, text_length=50_000
    )

    assert "must have 50000 tokens for a text, got" in refusal(folder, measure=settings)


def test_a_disk_without_room_is_refused(folder: Path) -> None:
    # 0.56 million numbers of 12 bytes each: 10 million checkpoints fit no disk
    training = TrainingConfig(num_steps=1, num_checkpoints=10**7)

    assert "the disk of the run directory must have" in refusal(folder, training=training)


def test_settings_of_workers_without_workers_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="--gpus-per-worker, --retries must go with --workers, got none"):
        config_of(folder, gpus_per_worker=1, retries=1)
    with pytest.raises(ValueError, match=r"training\.shard and training\.context_parallel must go with --workers"):
        config_of(folder, training=TrainingConfig(num_steps=1, shard=True))


@pytest.mark.parametrize("name", ["num_target", "num_original", "num_texts", "text_length"])
def test_nothing_is_measured_on_no_document(name: str) -> None:
    settings: dict[str, Any] = {name: 0}
    with pytest.raises(ValueError, match=f"measure.{name} must be at least 1, got 0"):
        MeasureConfig(**settings)


def test_the_command_says_in_one_line_what_is_missing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["finetune", "--model", MODEL]) == 2

    assert capsys.readouterr().err.strip() == (
        "ropewalk: error: a fine-tuning must have --factors, got none. Give it, or a --config that has it."
    )


def test_a_run_of_other_settings_is_not_taken_up(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings: dict[str, Any] = {
        "model": MODEL,
        "factors": str(folder / "factors.json"),
        "data": str(folder / "data.jsonl"),
        "tokens": str(folder / "tokens"),
        "dtype": "float32",
        "training": {"num_steps": 1, "micro_batches_per_step": 1},
        "measure": {"corpus": CORPUS, "num_target": 1, "num_original": 1, "num_texts": 1, "text_length": 300},
    }
    (folder / "finetune.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    words = ["finetune", "--config", str(folder / "finetune.yaml"), "--run-dir", str(folder / "run")]
    assert main(words) == 0
    assert main([*words, "--training.activation-checkpointing", "true"]) == 0, "it moves no loss, and may be what fits"
    capsys.readouterr()

    assert main([*words, "--training.learning-rate", "1e-3", "--seed", "1"]) == 2

    told = capsys.readouterr().err
    assert "got another value of" in told
    assert "seed" in told
    assert "training.learning_rate" in told


def test_a_search_refuses_a_finetuning_that_could_not_follow_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["search", "--model", MODEL, "--corpus", CORPUS, "--target-length", "512", "--then-finetune"]
    assert main([*words, str(folder / "nothing.yaml")]) == 2
    assert "--then-finetune must be a YAML file, got" in capsys.readouterr().err

    (folder / "finetune.yaml").write_text(f"data: {folder}/missing.jsonl\n", encoding="utf-8")
    assert main([*words, str(folder / "finetune.yaml")]) == 2
    assert "missing.jsonl, which does not" in capsys.readouterr().err
