"""Retention in `ropewalk evaluate`: the switch is exact, pinned factors are not, and an inexact switch is warned of."""

import json
import logging
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console
from torch import Tensor, nn

from results.evaluation import RETENTION, Retention
from results.row_store import RowStore
from search.cli import main
from search.evaluation.config import EvaluationConfig
from search.evaluation.contenders import read_contenders
from search.evaluation.retention import RetentionCheck
from workers.model import LoadedModel, load_model

LINES, TABLE = "retention.jsonl", "retention.parquet"
REFERENCE = Path(__file__).parents[2] / "workers" / "reference"
CORPUS = REFERENCE / "tom_sawyer.txt"
WINDOW = 256


def configured(**changes: object) -> EvaluationConfig:
    settings: dict[str, object] = {
        "model": str(REFERENCE / "model"),
        "methods": "none,yarn",
        "lengths": "1024",
        "num_texts": 2,
    } | changes
    return EvaluationConfig(**settings)  # type: ignore[arg-type]


def arguments(run_dir: Path, **changes: object) -> list[str]:
    settings: dict[str, object] = {
        "model": REFERENCE / "model",
        "corpus": CORPUS,
        "methods": "none,yarn",
        "tasks": "retention",
        "lengths": "100,1024",
        "num-texts": 2,
        "dtype": "float32",
        "run-dir": run_dir,
    } | changes
    return ["evaluate", *(f"--{name}={value}" for name, value in settings.items() if value is not None)]


def model() -> LoadedModel:
    return load_model(str(REFERENCE / "model"), dtype="float32", device="cpu")


def embedding_of(loaded: LoadedModel) -> Tensor:
    weight = loaded.model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("retention") / "run"
    assert main(arguments(run_dir)) == 0
    return run_dir


def test_the_switch_keeps_every_bit_and_pinned_factors_do_not(finished: Path) -> None:
    frame = pd.read_parquet(finished / TABLE)
    # A quarter of the window, the length inside it that was asked for, and the window; two texts each
    assert (
        frame.groupby(["contender", "serving"])["length"].apply(sorted).tolist() == [[64, 64, 100, 100, 256, 256]] * 4
    )
    assert (frame["num_positions"] == frame["length"]).all()
    exact = frame[(frame["serving"] == "switched") | (frame["contender"] == "none")]
    assert (exact[["largest_difference", "sum_divergence"]] == 0.0).all(axis=None)
    assert (exact["num_same_top"] == exact["num_positions"]).all()
    pinned = frame[(frame["serving"] == "pinned") & (frame["contender"] == "yarn")]
    assert (pinned[["largest_difference", "sum_divergence"]] > 0.0).all(axis=None)


def test_the_table_says_exact_where_nothing_moved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(tmp_path / "run")) == 0
    out = capsys.readouterr().out
    assert "as it was loaded, or with the factors' short ones" in " ".join(out.split())
    rows = [line.split() for line in out.splitlines() if "switched │" in line or "pinned   │" in line]
    cells = {(row[0], row[2], row[4]): row[6:] for row in rows}
    assert len(cells) == 2 * 2 * 3
    for (contender, serving, _), numbers in cells.items():
        is_exact = numbers == ["exact", "│", "exact", "│", "100.00"]
        assert is_exact == (serving == "switched" or contender == "none")


def test_without_a_corpus_texts_are_random_tokens(tmp_path: Path) -> None:
    loaded = model()
    assert main(arguments(tmp_path / "run", corpus=None, methods="yarn", lengths="512")) == 0
    assert set(pd.read_parquet(tmp_path / "run" / TABLE)["text"]) == {"random-0", "random-1"}
    seeds = [RetentionCheck.build(configured(seed=seed), loaded).fingerprint() for seed in (0, 0, 1)]
    assert seeds[0] == seeds[1] != seeds[2]


def test_a_killed_check_goes_on_where_it_was_and_measures_nothing_twice(finished: Path, tmp_path: Path) -> None:
    run_dir, num_whole = tmp_path / "run", 5
    assert main(arguments(run_dir)) == 0
    lines = (run_dir / LINES).read_bytes().splitlines(keepends=True)
    (run_dir / TABLE).unlink()
    before = [json.loads(line) for line in lines[:num_whole]]
    (run_dir / LINES).write_bytes(b"".join(lines[:num_whole]) + lines[num_whole][:20])
    assert main(arguments(run_dir)) == 0
    after = [json.loads(line) for line in (run_dir / LINES).read_bytes().splitlines()]
    assert after[:num_whole] == before  # their times too
    resumed, whole = (pd.read_parquet(path / TABLE).drop(columns="seconds") for path in (run_dir, finished))
    pd.testing.assert_frame_equal(resumed, whole)


def test_a_switch_that_does_not_give_the_model_back_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = model()
    embedding = embedding_of(loaded)

    def wear(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        # A model that a long text changes
        if args[0].shape[1] > WINDOW:
            embedding.add_(0.01)

    handle = loaded.model.get_input_embeddings().register_forward_hook(wear)
    config = configured(methods="yarn", num_texts=1)
    (contender,) = read_contenders(config, loaded.geometry)
    with caplog.at_level(logging.WARNING):
        steps = list(RetentionCheck.build(config, loaded).steps(contender, set()))
    handle.remove()
    told = [step.told for step in steps if step.num_units == 0 and step.told]  # before what they tell of
    assert (told, bool(steps[1].rows), bool(steps[2].rows)) == (
        [f"retention, {n} tokens" for n in (64, 256)],
        False,
        True,
    )
    assert "yarn, random-0 at 64 tokens: after the switch back logits must be the original model's" in caplog.text
    (switched, _) = next(step.rows for step in steps if step.rows)
    assert switched.serving == "switched"
    assert switched.largest_difference is not None
    assert switched.largest_difference > 0.0


def test_a_model_that_was_changed_before_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    loaded = model()
    config = configured(methods="yarn", num_texts=1)
    (contender,) = read_contenders(config, loaded.geometry)
    check = RetentionCheck.build(config, loaded)
    with caplog.at_level(logging.WARNING):
        next(check.steps(contender, set()))
        assert "as it was loaded before" not in caplog.text
        embedding_of(loaded).data.add_(0.01)
        next(check.steps(contender, set()))
    assert "the model must be as it was loaded before retention is measured" in caplog.text


def test_logits_that_are_no_numbers_are_stored_as_none_and_shown_as_such(tmp_path: Path) -> None:
    loaded = model()
    embedding_of(loaded).data[:] = float("nan")
    config = configured(num_texts=1)
    contenders = read_contenders(config, loaded.geometry)
    check = RetentionCheck.build(config, loaded)
    store = RowStore(tmp_path, RETENTION, Retention)
    for contender in contenders:
        for step in check.steps(contender, set()):
            store.add(step.rows)
    assert {row.largest_difference for row in store.recover()} == {None}
    console = Console(width=200)
    with console.capture() as capture:
        console.print(check.tables(store.finish(), contenders)[0])
    assert capture.get().count("not finite") == 2 * 2 * 2 * 2
    assert "exact" not in capture.get()


def test_a_corpus_that_is_shorter_than_the_window_is_refused(tmp_path: Path) -> None:
    corpus = tmp_path / "book.txt"
    corpus.write_text("A few words. And more. " * 10)
    with pytest.raises(
        ValueError,
        match=r"^the held-out part of \S+book\.txt must have 256 tokens for a text, got \d+\. Give a longer corpus, or "
        "none: random tokens are read then",
    ):
        RetentionCheck.build(configured(corpus=str(corpus)), model())
