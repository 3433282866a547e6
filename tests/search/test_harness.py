"""`ropewalk evaluate --harness` on the reference model: its tables, what a kill leaves, and what is refused."""

import json
from collections.abc import Iterator
from pathlib import Path

import datasets
import pandas as pd
import pytest
from huggingface_hub import constants

from search.cli import main

LINES, TABLE = "harness.jsonl", "harness.parquet"
REFERENCE = Path(__file__).parents[2] / "workers" / "reference"
TEXT = (REFERENCE / "tom_sawyer.txt").read_text(encoding="utf-8")[30_000:]
CHOICE = """
task: tiny
dataset_path: json
dataset_kwargs:
  data_files: {test: questions.jsonl}
output_type: multiple_choice
test_split: test
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
doc_to_choice: "{{choices}}"
metadata: {version: 1.0}
"""
WRITING = """
task: written
dataset_path: json
dataset_kwargs:
  data_files: {test: questions.jsonl}
output_type: generate_until
test_split: test
doc_to_text: "{{question}}"
doc_to_target: " and"
generation_kwargs: {until: ["\\n"], max_gen_toks: 8}
metadata: {version: 2.0}
"""
GROUP = """
group: both
task: [tiny, written]
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
"""


@pytest.fixture(scope="module", autouse=True)
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No hub, and a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        yield


def write_tasks(folder: Path, num_characters: int = 1700) -> Path:
    folder.mkdir(parents=True)
    for name, task in (("tiny", CHOICE), ("written", WRITING), ("both", GROUP)):
        (folder / f"{name}.yaml").write_text(task, encoding="utf-8")
    rows = [
        {"question": TEXT[start : start + length].rstrip(), "choices": ["the", "Tom", "and then"], "answer": number % 3}
        for number, (start, length) in enumerate([(0, 100), (900, 300), (5000, num_characters), (9000, 1500)])
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "questions.jsonl").write_text(lines, encoding="utf-8")
    return folder


def arguments(run_dir: Path, folder: Path, **changes: object) -> list[str]:
    settings: dict[str, object] = {
        "model": REFERENCE / "model",
        "methods": "none,yarn",
        "harness": "tiny,written",
        "harness-tasks": folder,
        "lengths": "256,1024",
        "dtype": "float32",
        "run-dir": run_dir,
    } | changes
    return ["evaluate", *(f"--{name}={value}" for name, value in settings.items() if value is not None)]


def read(run_dir: Path) -> pd.DataFrame:
    order = ["contender", "task", "metric"]
    frame = pd.read_parquet(run_dir / TABLE).drop(columns="seconds")
    return frame.sort_values(order, ignore_index=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("harness") / "tasks")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    run_dir = tmp_path_factory.mktemp("evaluation") / "run"
    assert main(arguments(run_dir, folder)) == 0
    return run_dir


def test_every_metric_of_every_task_is_a_row_of_each_contender(finished: Path) -> None:
    frame = read(finished)
    # multiple_choice and generate_until have these metrics where a task names none
    metrics = {("tiny", "acc,none"), ("tiny", "acc_norm,none"), ("written", "exact_match,none")}
    assert set(zip(frame["task"], frame["metric"], strict=True)) == metrics
    assert frame.groupby("contender").size().to_dict() == {"none": 3, "yarn": 3}
    assert set(frame["version"]) == {"1.0", "2.0"}
    assert set(frame["num_samples"]) == {4}
    assert frame["value"].between(0, 1).all()


def test_the_table_shows_contenders_side_by_side_and_groups_as_they_are_averaged(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(tmp_path / "run", folder, harness="both", **{"harness-limit": 3})) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "│" in line]
    cells = [[cell.strip() for cell in line.split("│")] for line in lines]
    scores = {(row.task, row.metric, row.contender): row for row in read(tmp_path / "run").itertuples()}
    assert [row[:3] for row in cells] == [
        ["tiny", "acc,none", "3"],
        ["tiny", "acc_norm,none", "3"],
        ["written", "exact_match,none", "3"],
        ["both", "acc,none", "6"],
    ]
    for row in cells[:3]:
        for shown, name in zip(row[3:], ("none", "yarn"), strict=True):
            score = scores[row[0], row[1], name]
            assert shown == f"{score.value:.4f} ± {score.stderr:.4f}"
    # Of the group's tasks only one has this metric
    assert [cell.split(" ")[0] for cell in cells[3][3:]] == [cell.split(" ")[0] for cell in cells[0][3:]]


def test_a_killed_evaluation_measures_no_task_twice(finished: Path, folder: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert main(arguments(run_dir, folder)) == 0
    lines = (run_dir / LINES).read_bytes().splitlines(keepends=True)
    (run_dir / TABLE).unlink()
    (run_dir / LINES).write_bytes(b"".join(lines[:3]) + lines[3][:20])
    assert main(arguments(run_dir, folder)) == 0
    after = (run_dir / LINES).read_bytes().splitlines(keepends=True)
    assert after[:3] == lines[:3]  # their times too
    pd.testing.assert_frame_equal(read(run_dir), read(finished))


def test_inside_the_window_all_contenders_have_the_same_scores(tmp_path: Path) -> None:
    folder = write_tasks(tmp_path / "tasks")
    lines = (folder / "questions.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "questions.jsonl").write_text("".join(lines[:2]), encoding="utf-8")
    assert main(arguments(tmp_path / "run", folder)) == 0
    values = read(tmp_path / "run").pivot(index=["task", "metric"], columns="contender", values="value")
    assert (values["none"] == values["yarn"]).all()


def test_an_evaluation_whose_data_have_changed_is_not_taken_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_tasks(tmp_path / "tasks")
    assert main(arguments(tmp_path / "run", folder, harness="tiny", methods="none")) == 0
    (folder / "questions.jsonl").unlink()
    write_tasks(tmp_path / "other", num_characters=900)
    (tmp_path / "other" / "questions.jsonl").rename(folder / "questions.jsonl")
    assert main(arguments(tmp_path / "run", folder, harness="tiny", methods="none")) == 2
    assert "must keep its configuration, got another value of samples_sha256" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"harness-tasks": "nowhere"}, "--harness-tasks must be a folder of task files, got "),
        ({"prompt": "chat"}, "--prompt chat must have a tokenizer with a chat template, got none."),
        ({"lengths": "200", "original-length": 8}, "leave room for a prompt in 200 tokens, got 250. Raise --lengths."),
    ],
    ids=str,
)
def test_what_cannot_be_measured_is_refused_in_one_line_and_leaves_nothing(
    changes: dict[str, object], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_tasks(tmp_path / "tasks")
    file = folder / "written.yaml"
    file.write_text(WRITING.replace("toks: 8", "toks: 250"), encoding="utf-8")
    assert main(arguments(tmp_path / "run", folder, **changes)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("ropewalk: error: ")
    assert message in error
    assert not (tmp_path / "run").exists()


def test_data_of_the_hub_that_cannot_be_reached_are_refused_in_one_line_and_leave_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_tasks(tmp_path / "tasks")
    (folder / "tiny.yaml").write_text(CHOICE.replace("path: json", "path: someone/questions"), encoding="utf-8")
    assert main(arguments(tmp_path / "run", folder)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("ropewalk: error: the harness task tiny must be one that can be read with its data, got ")
    assert error.endswith("Without the hub, its file must name local data: see --harness-tasks.")
    assert not (tmp_path / "run").exists()
