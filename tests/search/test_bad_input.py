"""What a user can get wrong with a real model: one clear line, exit code 2, nothing half-written."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM, PreTrainedTokenizerFast

from search.cli import main

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "workers/reference/model"
HAYSTACK = ROOT / "workers/reference/tom_sawyer.txt"


def refused(capsys: pytest.CaptureFixture[str], run_dir: Path, *options: str, **replaced: str | Path) -> str:
    """Run a search that must be refused and return its one line of error; the run directory must not appear."""
    given = {"model": MODEL, "corpus": HAYSTACK, "target-length": "512", "run-dir": run_dir} | {
        key.replace("_", "-"): value for key, value in replaced.items()
    }
    before = set(run_dir.iterdir()) if run_dir.exists() else None
    capsys.readouterr()
    code = main(["search", *(f"--{key}={value}" for key, value in given.items()), *options])
    assert code == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ropewalk: error: ")]
    assert len(error) == 1
    assert (set(run_dir.iterdir()) if run_dir.exists() else None) == before
    return error[0]


def test_no_such_model_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "--model must be a folder" in refused(capsys, tmp_path / "run", model=tmp_path / "nothing")


def test_a_model_without_rope(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=1024, n_positions=256)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL / name, tmp_path / "gpt2" / name)
    assert "must have rotary position embeddings" in refused(capsys, tmp_path / "run", model=tmp_path / "gpt2")


@pytest.mark.parametrize("target", ["256", "100"])
def test_a_target_that_is_not_above_the_original_window(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, target: str
) -> None:
    error = refused(capsys, tmp_path / "run", target_length=target)
    assert f"--target-length must be above the model's original window of 256 tokens, got {target}" in error


def test_an_unknown_original_window_says_which_flag_sets_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = shutil.copytree(MODEL, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    del config["max_position_embeddings"]
    (folder / "config.json").write_text(json.dumps(config))
    assert "--original-length" in refused(capsys, tmp_path / "run", model=folder)


def test_a_haystack_that_is_shorter_than_the_document(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("A short story. It ends here. " * 40)
    error = refused(capsys, tmp_path / "run", corpus=tmp_path / "short.txt")
    assert "the haystack must fill a document of 512 tokens" in error


def test_an_empty_corpus(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    assert "empty.txt" in refused(capsys, tmp_path / "run", corpus=tmp_path / "empty.txt")


def test_a_corpus_that_is_not_utf8(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("Voilà. ".encode("latin-1") * 5000)
    assert "UTF-8" in refused(capsys, tmp_path / "run", corpus=tmp_path / "latin.txt")


def test_a_tokenizer_that_cannot_encode_the_needle(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = shutil.copytree(MODEL, tmp_path / "model")
    words = Tokenizer(models.WordLevel({"<unk>": 0, "the": 1, "a": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")  # type: ignore[no-untyped-call]
    tokenizer.save_pretrained(folder)
    assert "needle" in refused(capsys, tmp_path / "run", model=folder)


def test_a_run_directory_that_holds_another_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    for name in ("config.yaml", "config.sha256"):
        (run_dir / name).write_text("seed: 1\n")
    assert "must keep its configuration, got another value of aggregate, algorithm, " in refused(capsys, run_dir)
    assert (run_dir / "config.yaml").read_text() == "seed: 1\n"


def test_an_unknown_option_names_the_known_ones(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    error = refused(capsys, tmp_path / "run", "--popsize=3")
    assert "popsize" in error
    assert "evolution.population_size" in error


def test_an_unknown_key_in_a_config_names_the_known_ones(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("evolution:\n  popsize: 3\n")
    error = refused(capsys, tmp_path / "run", f"--config={tmp_path / 'config.yaml'}")
    assert "popsize" in error
    assert "evolution.population_size" in error


def test_every_candidate_failing_stops_the_run_and_says_why(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as the allocator does where one document does not fit; the short proof at the start does
    forward = LlamaForCausalLM.forward

    def short_of_memory(model: LlamaForCausalLM, input_ids: torch.Tensor, **options: Any) -> object:
        if input_ids.shape[1] >= 512:
            raise MemoryError("64 GB for one document")
        return forward(model, input_ids=input_ids, **options)

    monkeypatch.setattr(LlamaForCausalLM, "forward", short_of_memory)
    options = [f"--model={MODEL}", f"--corpus={HAYSTACK}", "--target-length=512", f"--run-dir={tmp_path / 'run'}"]
    assert main(["search", *options, "--formulas.methods=[none, yarn]", "--documents.num-search=6"]) == 2
    assert "out of memory: 64 GB for one document" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--algorithm=annealing"], "--algorithm must be one of gradient, cmaes, longrope2, tpe, random, "),
        (
            ["--racing=wilcoxon", "--documents.num-search=1"],
            "--racing wilcoxon must have at least 5 search documents, got 1",
        ),
        (["--objectives=long,speed"], "--objectives must be long or long,short"),
        (["--budget=100"], "--budget must be above the "),
        (["--documents.num-needles=4", "--documents.num-search=6"], "length must be at least 322"),
    ],
)
def test_what_an_algorithm_cannot_do(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, options: list[str], message: str
) -> None:
    assert message in refused(capsys, tmp_path / "run", *options)


def test_more_needles_than_the_model_answers_in_its_own_window(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    given = [f"--model={MODEL}", f"--corpus={HAYSTACK}", "--target-length=512", f"--run-dir={tmp_path / 'run'}"]
    assert main(["search", *given, "--documents.num-needles=2", "--documents.num-search=6"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "the model must answer 2 needles in its own window of 256 tokens with a loss of at most" in error
    assert "Use --documents.num-needles 1." in error


def test_an_objective_that_cannot_be_measured(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = LlamaForCausalLM.forward

    def short_of_memory(model: LlamaForCausalLM, input_ids: torch.Tensor, **options: Any) -> object:
        if input_ids.shape[1] == 256:
            raise MemoryError("nothing left")
        return forward(model, input_ids=input_ids, **options)

    monkeypatch.setattr(LlamaForCausalLM, "forward", short_of_memory)
    given = [f"--model={MODEL}", f"--corpus={HAYSTACK}", "--target-length=512", f"--run-dir={tmp_path / 'run'}"]
    assert main(["search", *given, "--objectives=long,short", "--documents.num-search=6"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "the objective short must be measurable, got a failure of the unscaled model on 8 documents" in error
