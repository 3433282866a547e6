"""Which tasks `ropewalk evaluate` builds, by which metric they are scored, and what its tables say of the answers."""

from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import cast

import pandas as pd
import pytest
from rich.console import Console
from rich.table import Table

from needles.metrics import string_match_all, string_match_part, whole_word_match
from needles.sample import Sample
from results.evaluation import SampleScore
from search.cli import main
from search.evaluation.answers import answer_tables
from search.evaluation.config import EvaluationConfig
from search.evaluation.tables import new_console, new_table, show
from search.evaluation.tasks import TASK_NAMES, build_tasks, metric_of
from tests.results.test_answer_tables import SCORES, scores, window_scores
from workers.model import LoadedModel, load_model

REFERENCE = Path(__file__).parents[2] / "workers" / "reference"
WINDOW = 256
TARGETS = {"none": 1024, "yarn": 512}


def config(**changes: object) -> EvaluationConfig:
    settings: dict[str, object] = {
        "model": str(REFERENCE / "model"),
        "corpus": str(REFERENCE / "tom_sawyer.txt"),
        "lengths": "512",
        "num_samples": 1,
    } | changes
    return EvaluationConfig(**settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model(str(REFERENCE / "model"), dtype="float32", device="cpu")


def build(loaded: LoadedModel, **changes: object) -> list[Sample]:
    asked = config(**changes)
    return build_tasks(asked, loaded, asked.task_names)


def shown(table: Table) -> tuple[list[str], list[list[str]], str]:
    """Return the header, the rows and the caption as the terminal shows them."""
    console = Console(width=400)
    with console.capture() as capture:
        console.print(table)
    lines = capture.get().splitlines()
    rows = [[cell.strip() for cell in line.split("│")] for line in lines if "│" in line]
    header = next([cell.strip() for cell in line.split("┃")] for line in lines if "┃" in line)
    return header, rows, " ".join(cast(str, table.caption).split())


def tables(frame: pd.DataFrame, *, original_length: int = WINDOW, threshold: float = 85.6) -> list[Table]:
    return answer_tables(frame, TARGETS, original_length=original_length, threshold=threshold)


def test_a_task_is_kept_at_the_lengths_that_have_room_for_it_and_the_others_are_said(
    loaded: LoadedModel, caplog: pytest.LogCaptureFixture
) -> None:
    samples = build_tasks(config(lengths="128,256,512"), loaded, ["passkey", "niah_multivalue"])
    assert [(sample.task, sample.length) for sample in samples] == [
        *(("passkey", length) for length in (128, 256, 512)),
        ("niah_multivalue", 512),
    ]
    said = [record.getMessage() for record in caplog.records]
    assert [message.partition(":")[0] for message in said] == [
        f"niah_multivalue is left out at {length} tokens, and is in no average" for length in (128, 256)
    ]


def test_a_task_that_is_not_at_every_length_is_in_no_average_and_the_captions_say_so() -> None:
    partial = scores({("none", "cwe"): [[0.0], [0.0]], ("yarn", "cwe"): [[0.0], [0.0]]}, lengths=(512, 1024))
    answers, ruler = (shown(table) for table in tables(pd.concat([scores(SCORES), partial])))
    assert ["cwe", "none", "", "0.0", "0.0"] in answers[1]
    assert ["all", "none", "90.0", "23.3", "0.0"] in answers[1]
    assert "all: mean over the 3 tasks above but for cwe, not at every length; not measured: " in answers[2]
    assert ruler[1] == shown(tables(scores(SCORES))[1])[1]
    assert "not measured at every length, and in no average: " in ruler[2]
    assert ", cwe, " in ruler[2]


def test_no_digit_is_cut_off_where_lines_are_short() -> None:
    lengths = [4096 * 2**number for number in range(6)]
    table = new_table("RULER, percent", ["factors"], [str(length) for length in lengths])
    table.add_row("a[long name of factors]", *(f"{50 + number:.1f}*" for number in range(6)))
    table.caption = "A caption of some words. " * 8
    console = new_console(40)
    with redirect_stdout(StringIO()) as stream:
        show(console, table)
    lines = stream.getvalue().splitlines()
    (header,) = [line for line in lines if "factors" in line and "┃" in line]
    (row,) = [line for line in lines if "│" in line]
    assert [int(cell) for cell in header.split("┃")[1:]] == lengths
    assert [cell.strip() for cell in row.split("│")] == ["a[long name of factors]", *(f"{50 + n}.0*" for n in range(6))]
    assert all(len(line) <= 40 for line in lines if "caption" in line)


def test_every_task_has_its_own_metric() -> None:
    metrics = {name: metric_of(name) for name in TASK_NAMES}
    assert {name for name, metric in metrics.items() if metric is string_match_part} == {"qa_1", "qa_2"}
    assert {name for name, metric in metrics.items() if metric is whole_word_match} == {
        "line_retrieval",
        "topic_retrieval",
        "passkey",
        "passkey_window",
    }
    assert sum(metric is string_match_all for metric in metrics.values()) == 11 + len(["niah_grid"])
    assert metric_of("topic_retrieval")(" I would instead", ["tea"]) == 0.0
    assert metric_of("line_retrieval")(" 312345", ["12345"]) == 0.0


def test_answers_are_shown_in_percent_and_lengths_beyond_the_factors_marked() -> None:
    header, rows, caption = shown(tables(pd.concat([scores(SCORES), window_scores()]))[0])
    assert header == ["task", "factors", "256", "512", "1024"]
    assert rows == [
        ["niah_single_1", "none", "100.0", "50.0", "0.0"],
        ["niah_single_1", "yarn", "100.0", "100.0", "100.0*"],
        ["vt", "none", "70.0", "20.0", "0.0"],
        ["vt", "yarn", "70.0", "90.0", "70.0*"],
        ["passkey", "none", "100.0", "0.0", "0.0"],
        ["passkey", "yarn", "100.0", "100.0", "50.0*"],
        ["all", "none", "90.0", "23.3", "0.0"],  # 2.7 / 3, 0.7 / 3
        ["all", "yarn", "90.0", "96.7", "73.3*"],  # 2.9 / 3, 2.2 / 3
    ]
    assert "all: mean over the 3 tasks above; not measured: niah_single_2, " in caption
    assert "passkey_window" not in caption


def test_rulers_figures_stand_below_the_answers() -> None:
    header, rows, caption = shown(tables(scores(SCORES))[1])
    assert header == [
        *["factors", "256", "512", "1024", "mean", "inc.", "dec.", "≥ 85.6", "≥ 85.0"],
    ]
    assert rows == [
        # 120 / 3, (85 + 70) / 6, (255 + 70) / 6
        ["none", "85.0", "35.0", "0.0", "40.0", "25.8", "54.2", "none", "256"],
        # 265 / 3, (85 + 190 + 255) / 6, (255 + 190 + 85) / 6
        ["yarn", "85.0", "95.0", "85.0*", "88.3", "88.3", "88.3", "512", "1024"],
    ]
    assert caption.startswith(
        "Mean over 2 of RULER's 13 tasks; not measured at every length, and in no average: niah_single_2, "
    )
    assert caption.endswith("85.0: none at 256 tokens.")
    assert "no comparison" not in caption


def test_without_a_length_inside_the_window_there_is_no_baseline_and_the_table_says_so() -> None:
    header, rows, caption = shown(tables(scores(SCORES), original_length=128, threshold=30.0)[1])
    assert header[-1] == "≥ 30"
    assert [row[-1] for row in rows] == ["512", "1024"]
    assert caption.endswith("no length inside the original window, so no baseline of the model's own.")


def test_averages_over_other_tasks_than_the_rest_are_said_and_answers_without_a_score_shown() -> None:
    values = SCORES | {("yarn", "vt"): [[0.8, 0.6], [None, 0.9], [0.8, 0.6]]}
    answers, ruler = (shown(table) for table in tables(scores(values)))
    assert ["vt", "yarn", "70.0", "not finite", "70.0*"] in answers[1]
    assert ["all", "yarn", "90.0", "not finite", "73.3*"] in answers[1]
    assert "yarn at 512 without vt too, so no comparison; " in ruler[2]


def test_the_effective_window_has_a_row_for_each_contender_and_no_columns_of_lengths() -> None:
    table = tables(window_scores())[0]
    assert table.title == "Effective window (k_max), tokens"
    header, rows, caption = shown(table)
    assert header == ["factors", "k_max", "shortest", "longest", "lengths", "samples"]
    assert rows == [["none", "256", "128", "512", "4", "2"], ["yarn", "384", "128", "512", "4", "2"]]
    assert "at least 20 percent of passkeys" in caption
    assert len(tables(window_scores())) == 1
    at_none = window_scores().assign(score=0.0)
    assert [row[1] for row in shown(tables(at_none)[0])[1]] == ["below 128", "below 128"]


def test_a_window_beyond_the_factors_is_marked() -> None:
    found = shown(answer_tables(window_scores(), {"none": 128, "yarn": 384}, original_length=128, threshold=85.6)[0])
    assert [row[1] for row in found[1]] == ["256*", "384"]


def test_the_grid_has_the_depths_asked_for(loaded: LoadedModel) -> None:
    samples = build(loaded, tasks="niah_grid", lengths="256,300", depths="0, 0.3,1", num_samples=2)
    assert [(sample.length, sample.depth) for sample in samples] == [
        (length, depth) for length in (256, 300) for depth in (0.0, 0.3, 1.0) for _ in range(2)
    ]
    default = build(loaded, tasks="niah_grid", lengths="256")
    assert [sample.depth for sample in default] == [0.0, 0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("depths", ["", "0,2", "-0.5", "middle", "0.5,0.50", "nan"])
def test_depths_must_be_distinct_shares(depths: str) -> None:
    with pytest.raises(
        ValueError, match=r"^--depths must be distinct numbers from 0 to 1, got '.*'\. Write 0,0\.5,1\.$"
    ):
        config(depths=depths)


def test_passkeys_of_the_window_are_at_32_lengths_up_to_the_longest_but_for_those_without_room(
    loaded: LoadedModel, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    samples = build(loaded, tasks="passkey_window", lengths="256,1024", num_samples=3)
    assert sorted({sample.length for sample in samples}) == list(range(128, 1025, 32))
    assert len(samples) == 3 * 29
    said = [record.message for record in caplog.records if "passkey_window" in record.message]
    assert said == ["passkey_window leaves out lengths that are too short for its prompt: 32, 64, 96"]


def test_lines_and_topics_are_built_at_every_length(loaded: LoadedModel) -> None:
    samples = build(loaded, tasks="line_retrieval,topic_retrieval", lengths="512,1024", num_samples=2)
    assert [(sample.task, sample.length) for sample in samples] == [
        (task, length) for task in ("line_retrieval", "topic_retrieval") for length in (512, 1024) for _ in range(2)
    ]
    for sample in samples:
        num_tokens = len(sample.token_ids) + sample.num_generated
        # A line has some 30 tokens, and a record of four may not fit exactly
        assert num_tokens == sample.length or (sample.task == "line_retrieval" and 0 < sample.length - num_tokens < 30)


def test_the_command_answers_lines_topics_and_passkeys_and_tells_the_window(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    arguments = {
        "model": REFERENCE / "model",
        "corpus": REFERENCE / "tom_sawyer.txt",
        "methods": "none,yarn",
        "tasks": "line_retrieval,topic_retrieval,passkey_window",
        "lengths": "512",
        "num-samples": "1",
        "dtype": "float32",
        "run-dir": tmp_path / "run",
    }
    assert main(["evaluate", *(f"--{name}={value}" for name, value in arguments.items())]) == 0
    frame = pd.read_parquet(tmp_path / "run" / "scores.parquet")
    assert list(frame.columns) == list(SampleScore.__dataclass_fields__)
    counts = frame.groupby(["contender", "task"]).size()
    assert all(counts[name, "line_retrieval"] == counts[name, "topic_retrieval"] == 1 for name in ("none", "yarn"))
    assert counts["none", "passkey_window"] == counts["yarn", "passkey_window"] == len(range(128, 513, 16))
    inside = frame[(frame["task"] == "passkey_window") & (frame["length"] <= WINDOW)]
    texts = inside.pivot(index=["length", "sample"], columns="contender", values="text")
    # Inside the window every contender is the model as it was loaded
    assert (texts["none"] == texts["yarn"]).all()
    out = " ".join(capsys.readouterr().out.split())
    assert "Effective window (k_max), tokens" in out
    assert "RULER, percent" not in out  # none of its tasks was asked for
    assert "all: mean over the 2 tasks above" in out
