"""`ropewalk evaluate` on the reference model: what it answers, what a kill leaves, and what is refused."""

import json
from pathlib import Path

import pandas as pd
import pytest

from results.run_directory import RunDirectory
from rope.factors import RescaleFactors
from rope.methods import METHODS
from search.cli import main
from search.evaluation.config import EvaluationConfig
from search.evaluation.contenders import read_contenders
from workers.evaluate import Contender
from workers.geometry import RopeGeometry

LINES, TABLE = "scores.jsonl", "scores.parquet"
REFERENCE = Path(__file__).parents[2] / "workers" / "reference"
WINDOW = 256


def arguments(run_dir: Path, **changes: object) -> list[str]:
    settings: dict[str, object] = {
        "model": REFERENCE / "model",
        "corpus": REFERENCE / "tom_sawyer.txt",
        "methods": "none,yarn",
        "tasks": "niah_single_2,passkey",
        "lengths": "256,1024",
        "num-samples": 2,
        "dtype": "float32",
        "run-dir": run_dir,
    } | changes
    return ["evaluate", *(f"--{name}={value}" for name, value in settings.items() if value is not None)]


def read(run_dir: Path) -> pd.DataFrame:
    return pd.read_parquet(run_dir / TABLE).drop(columns="seconds")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("evaluation") / "run"
    assert main(arguments(run_dir)) == 0
    return run_dir


def test_the_reference_model_answers_in_its_window_and_beyond_with_yarn_alone(finished: Path) -> None:
    frame = read(finished)
    assert len(frame) == 2 * 2 * 2 * 2
    # Of passkeys it writes more digits than there are: its own needles have seven
    means = frame[frame["task"] == "niah_single_2"].groupby(["contender", "length"])["score"].mean()
    assert means["none", WINDOW] == means["yarn", WINDOW] == 1.0
    assert means["none", 4 * WINDOW] == 0.0
    assert means["yarn", 4 * WINDOW] >= 0.5
    inside = frame[frame["length"] == WINDOW].pivot(index=["task", "sample"], columns="contender", values="text")
    # Inside the window every contender is the model as it was loaded
    assert (inside["none"] == inside["yarn"]).all()


def test_scores_do_not_depend_on_the_batch(finished: Path, tmp_path: Path) -> None:
    assert main(arguments(tmp_path / "run", **{"batch-size": 1})) == 0
    pd.testing.assert_frame_equal(read(tmp_path / "run"), read(finished))


def test_a_killed_evaluation_goes_on_where_it_was_and_answers_nothing_twice(finished: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert main(arguments(run_dir)) == 0
    lines = (run_dir / LINES).read_bytes().splitlines(keepends=True)
    (run_dir / TABLE).unlink()
    before = [json.loads(line) for line in lines[:5]]
    (run_dir / LINES).write_bytes(b"".join(lines[:5]) + lines[5][:20])
    assert main(arguments(run_dir)) == 0
    after = [json.loads(line) for line in (run_dir / LINES).read_bytes().splitlines()]
    assert after[:5] == before  # their times too
    order = ["contender", "task", "length", "sample"]
    pd.testing.assert_frame_equal(
        read(run_dir).sort_values(order, ignore_index=True), read(finished).sort_values(order, ignore_index=True)
    )


def test_factors_of_a_file_stand_beside_the_formulas_and_lengths_beyond_them_are_marked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    config = json.loads((REFERENCE / "model" / "config.json").read_text())
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    factors = METHODS["yarn"](head_dim, 500.0, original_length=WINDOW, target_length=2 * WINDOW)
    factors.save(tmp_path / "mine.json")
    changes = {"factors": tmp_path / "mine.json", "methods": "none", "tasks": "passkey", "lengths": "512,1024"}
    assert main(arguments(tmp_path / "run", **changes)) == 0
    assert set(read(tmp_path / "run")["contender"]) == {"none", "mine"}
    assert "mine.json is for 512 tokens, and lengths beyond are marked *" in caplog.text
    shown = [line for line in capsys.readouterr().out.splitlines() if "│ mine" in line]
    assert shown
    assert all(line.rstrip().endswith("*") for line in shown)


def test_tasks_that_nobody_named_and_that_cannot_be_built_are_left_out_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changes = {"tasks": None, "methods": "none", "lengths": "300", "num-samples": 1}
    assert main(arguments(tmp_path / "run", **changes)) == 0
    assert "qa_1 is left out, and is in no average: it needs a squad file, and none was given" in caplog.text
    assert "vt is left out, and is in no average: length must be at least" in caplog.text
    assert "vt" not in set(read(tmp_path / "run")["task"])


def test_contenders_with_the_same_factors_are_both_there_after_a_kill(tmp_path: Path) -> None:
    run_dir, changes = tmp_path / "run", {"tasks": "passkey", "lengths": WINDOW}
    assert main(arguments(run_dir, **changes)) == 0  # inside the window both are the unscaled model
    assert read(run_dir)["candidate"].nunique() == 1
    lines = (run_dir / LINES).read_bytes().splitlines(keepends=True)
    (run_dir / LINES).write_bytes(lines[0])
    assert main(arguments(run_dir, **changes)) == 0
    assert read(run_dir).groupby("contender").size().to_dict() == {"none": 2, "yarn": 2}


@pytest.mark.parametrize("changed", ["contenders", "samples_sha256"])
def test_an_evaluation_whose_files_have_changed_is_not_taken_up(
    changed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, factors, corpus = (tmp_path / name for name in ("run", "mine.json", "book.txt"))
    METHODS["yarn"](32, 500.0, original_length=WINDOW, target_length=512).save(factors)
    corpus.write_text((REFERENCE / "tom_sawyer.txt").read_text(encoding="utf-8"), encoding="utf-8")
    changes = {"factors": factors, "corpus": corpus, "tasks": "niah_single_2", "lengths": "256", "methods": ""}
    assert main(arguments(run_dir, **changes)) == 0
    if changed == "contenders":
        METHODS["ntk"](32, 500.0, original_length=WINDOW, target_length=512).save(factors)
    else:
        corpus.write_text(corpus.read_text(encoding="utf-8").replace("e", "a"), encoding="utf-8")
    assert main(arguments(run_dir, **changes)) == 2
    error = capsys.readouterr().err
    assert "must keep its configuration, got another value of " in error
    assert changed in error


def test_a_corpus_that_cannot_be_read_is_no_task_s_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(tmp_path / "run", tasks=None, corpus="nowhere.txt")) == 2
    assert "nowhere.txt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": "niah"}, "--tasks must be among niah_single_1, "),
        ({"tasks": "qa_1"}, "task qa_1 cannot be built, it needs a squad file, and none was given. Give it, or drop"),
        ({"tasks": "vt"}, "length must be at least "),
        ({"lengths": "0"}, "--lengths must be numbers of tokens above 0, got '0'. Write 4096,8192."),
        ({"lengths": "256,0256"}, "--lengths must be distinct, got 256, 0256. Drop what is there twice."),
        ({"seed": -1}, "--seed must be at least 0, got -1. Raise it."),
        ({"prompt": "chat", "tasks": None}, "chat template"),
        ({"squad": REFERENCE / "tom_sawyer.txt", "tasks": None}, "tom_sawyer.txt"),
        (
            {"lengths": "16", "tasks": "passkey_window"},
            "--lengths must be at least 32 tokens for passkey_window, which has as many lengths, got 16. Raise it.",
        ),
        ({"methods": "best"}, "--methods must be among none, linear, "),
        ({"methods": ","}, "an evaluation must have --factors or --methods, got neither. Give one of them."),
        ({"num-samples": 0}, "--num-samples must be at least 1, got 0. Raise it."),
        ({"factors": "nowhere.json"}, "nowhere.json: factors must be in a readable file, got: No such file"),
        ({"model": "nowhere"}, "--model must be a folder, a .gguf file, or a hub id"),
        ({"corpus": "nowhere.txt"}, "nowhere.txt"),
    ],
    ids=str,
)
def test_what_cannot_be_evaluated_is_refused_in_one_line_and_leaves_nothing(
    changes: dict[str, object], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(tmp_path / "run", **changes)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("ropewalk: error: ")
    assert message in error
    assert not (tmp_path / "run").exists()


def yarn_factors() -> RescaleFactors:
    return METHODS["yarn"](32, 500.0, original_length=WINDOW, target_length=512)


def contenders_of(factors: str) -> list[Contender]:
    config = EvaluationConfig(model="m", lengths="512", methods="", factors=factors)
    return read_contenders(config, RopeGeometry(32, 500.0, WINDOW))


def test_factors_are_called_as_their_folder_also_by_a_relative_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine" / "below").mkdir(parents=True)
    yarn_factors().save(tmp_path / "mine" / "factors.json")
    for folder, path in (("mine", "factors.json"), ("mine", "."), ("mine/below", "..")):
        monkeypatch.chdir(tmp_path / folder)
        assert [contender.name for contender in contenders_of(path)] == ["mine"]


def test_factors_that_are_not_ropewalk_s_own_or_called_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(json.dumps([1.0] * 16))
    with pytest.raises(ValueError, match=r"list\.json must be a file of Ropewalk's own, .* with `ropewalk import`\.$"):
        contenders_of(str(tmp_path / "list.json"))
    yarn_factors().save(tmp_path / "none.json")
    with pytest.raises(ValueError, match="must not be called none, as the unscaled model, got "):
        contenders_of(str(tmp_path / "none.json"))


def test_an_evaluation_without_a_run_directory_goes_on_where_it_began_and_tells_who_measured_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    changes = {"tasks": "passkey", "lengths": WINDOW}
    with caplog.at_level("INFO"):
        assert main(arguments(tmp_path, **changes)[:-1]) == 0
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert f"after a kill the same command goes on with --run-dir {run_dir}" in caplog.text
    first = (run_dir / "provenance.json").read_bytes()
    assert json.loads(first)["earlier"] == []
    relative = run_dir.relative_to(tmp_path)
    assert main(arguments(relative, **changes)) == 0
    assert (run_dir / "provenance.json").read_bytes() == first  # nothing was measured
    lines = (run_dir / LINES).read_bytes().splitlines(keepends=True)
    (run_dir / LINES).write_bytes(lines[0])
    assert main(arguments(relative, **changes)) == 0
    assert (run_dir / LINES).read_bytes().startswith(lines[0])
    last = json.loads((run_dir / "provenance.json").read_text())
    assert [process["gathered"] for process in last["earlier"]] == [json.loads(first)["gathered"]]


def test_a_search_in_the_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    RunDirectory.create(tmp_path / "run", {"model": "m"}, resume=False)
    assert main(arguments(tmp_path / "run")) == 2
    assert "run must hold an evaluation, got another run. Choose one with --run-dir." in capsys.readouterr().err


def test_lengths_beyond_the_factors_are_warned_of_once_and_names_are_shown_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    files = [tmp_path / f"a[{name}].json" for name in ("best", "last")]
    for file in files:
        METHODS["none"](32, 500.0, original_length=WINDOW, target_length=WINDOW).save(file)
    run_dir = tmp_path / "run[1]"
    changes = {"factors": ",".join(map(str, files)), "methods": "", "tasks": "passkey", "lengths": "257"}
    assert main(arguments(run_dir, **changes)) == 0
    assert caplog.text.count("is for 256 tokens, and lengths beyond are marked") == 2
    assert "expect worse beyond" not in caplog.text
    out = capsys.readouterr().out
    assert str(run_dir) in out
    assert "a[best] │" in out
    assert "a[last] │" in out


def test_factors_of_another_model_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    METHODS["yarn"](64, 1e4, original_length=WINDOW, target_length=1024).save(tmp_path / "other.json")
    assert main(arguments(tmp_path / "run", factors=tmp_path / "other.json")) == 2
    assert "other.json: " in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_another_evaluation_in_the_folder_is_refused(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (finished / LINES).read_bytes()
    assert main(arguments(finished, methods="none")) == 2
    error = capsys.readouterr().err
    assert "must keep its configuration, got another value of " in error
    assert "methods" in error
    assert (finished / LINES).read_bytes() == before


def test_lists_are_words_with_commas_between_them() -> None:
    config = EvaluationConfig(model="m", lengths="256, 1024,", factors="a.json,b", tasks="")
    assert config.token_lengths == [256, 1024]
    assert (config.factor_files, config.method_names, config.task_names) == (["a.json", "b"], ["none"], [])
