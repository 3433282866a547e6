"""Tables across runs: every number is that of the run's own file, and what is no finished run is refused."""

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from results.comparison import compare, written
from results.evaluation import SCORES, SampleScore
from results.row_store import RowStore
from results.summary import MethodResult, Summary
from results.tuning_outcome import Kept, Measured, Outcome
from search.cli import main
from tests.results.evaluation_runs import answers, harness, kept, text_loss, write_evaluation

YARN = MethodResult(
    name="yarn",
    kind="formula",
    critical_dim=None,
    attention_temperature=1.1,
    search_perplexity=1.3,
    heldout_perplexity=1.25,
    original_perplexity=1.5,
)
SUMMARY = Summary(
    model="m",
    original_length=256,
    target_length=1024,
    seed=0,
    num_document_forwards=1,
    num_search_forwards=1,
    seconds=1.0,
    run_directory="x",
    methods=(YARN, replace(YARN, heldout_perplexity=2.0, original_perplexity=math.nan), replace(YARN, name="none")),
)


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "search", tmp_path / "evaluation"]
    for path in paths:
        path.mkdir()
    (paths[0] / "summary.json").write_text(SUMMARY.to_json())
    store = RowStore(paths[1], SCORES, SampleScore)
    store.add(
        [
            SampleScore(
                contender="yarn",
                candidate="0" * 16,
                task="passkey",
                sample=str(number),
                length=1024,
                depth=None,
                score=score,
                text="",
                num_generated=1,
                seconds=1.0,
            )
            for number, score in enumerate((1.0, 0.5, 0.0, 0.0))
        ]
    )
    store.finish()
    return paths


def test_every_number_is_the_run_s_own(runs: list[Path]) -> None:
    frame = compare(runs)
    assert list(frame.itertuples(index=False, name=None))[-1] == (
        *("evaluation", "yarn", "passkey", 1024, 37.5, "percent", 4),
    )
    values = frame[frame["run"] == "search"].set_index(["factors", "length"])["value"]
    assert values["yarn at 1.1000", 1024] == 1.25
    assert values["yarn at 1.1000 (2)", 1024] == 2.0  # another candidate of the same name is not averaged with it
    assert values["yarn at 1.1000", 256] == 1.5
    assert math.isnan(values["yarn at 1.1000 (2)", 256])
    assert values["none at 1.1000", 256] == 1.5


def test_each_form_holds_the_same(runs: list[Path]) -> None:
    frame = compare(runs)
    pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(written(frame, "csv"))), frame, check_dtype=False)
    records = json.loads(written(frame, "json"))
    assert [record["value"] for record in records] == [None if math.isnan(value) else value for value in frame["value"]]
    lines = written(frame, "table").splitlines()
    assert any("yarn" in line and "37.5" in line for line in lines)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return write_evaluation(
        tmp_path / "texts",
        texts=[
            text_loss("yarn", 1024, math.log(2), text="0"),
            text_loss("yarn", 1024, math.log(8), text="1"),
            text_loss("none", 1024, None),
            text_loss("yarn", 1024, 5.0, form="temp-lora"),
            text_loss("yarn", 1024, math.log(3), form="longlora"),
        ],
        retention=[
            kept("yarn", "switched", moved=0.0),
            kept("yarn", "pinned", moved=1.5, text="0"),
            kept("yarn", "pinned", moved=0.0, text="1"),
            kept("none", "pinned", moved=None),
        ],
        harness_scores=[harness("yarn", "acc,none", 0.5, 0.1), harness("none", "acc,none", None, None)],
    )


def test_an_evaluation_without_answers_is_compared_too(texts: Path) -> None:
    frame = compare([texts]).set_index(["task", "factors"])
    # exp of the mean of ln 2 and ln 8 is 4; 3.2 nats over two texts of 64 positions
    assert frame.loc[("perplexity", "yarn"), "value"] == pytest.approx(4.0)
    assert frame.loc[("perplexity_longlora", "yarn"), "value"] == pytest.approx(3.0)
    assert frame.loc[("perplexity_temp-lora", "yarn"), "value"] == pytest.approx(5.0)
    assert frame.loc[("retention switched", "yarn"), "value"] == 0.0
    assert frame.loc[("retention pinned", "yarn"), "value"] == pytest.approx(0.025)
    assert frame.loc[("arc", "yarn"), "value"] == 0.5
    assert frame["value"].isna().groupby("factors").sum().to_dict() == {"none": 3, "yarn": 0}
    units = frame["unit"].groupby("task").first().to_dict()
    assert units["arc"] == "acc,none"
    assert {name: unit for name, unit in units.items() if name != "arc"} == {
        **dict.fromkeys(("perplexity", "perplexity_longlora", "perplexity_temp-lora"), "perplexity"),
        **dict.fromkeys(("retention switched", "retention pinned"), "nats"),
    }
    numbers = frame["num_samples"].groupby(["task", "factors"]).first()
    assert (numbers["perplexity", "yarn"], numbers["retention pinned", "yarn"], numbers["arc", "yarn"]) == (2, 2, 200)
    assert frame["length"].isna().groupby("task").first().to_dict() == {name: name == "arc" for name in units}


def test_every_form_holds_what_has_no_length_or_no_finite_value(runs: list[Path], texts: Path) -> None:
    frame = compare([*runs, texts])
    lines = written(frame, "table").splitlines()
    assert len(lines) == 2 + len(frame)
    assert any(line.split() == ["arc", "acc,none", "yarn", "0.5"] for line in lines)
    records = [record for record in json.loads(written(frame, "json")) if record["task"] == "arc"]
    assert [(record["length"], record["value"]) for record in records] == [(None, 0.5), (None, None)]
    read = pd.read_csv(io.StringIO(written(frame, "csv")))
    assert read["value"].tolist() == pytest.approx(frame["value"].tolist(), nan_ok=True)
    assert read["length"].isna().sum() == 2


def test_a_fine_tuning_stands_with_what_it_was_measured_at_before_and_after(tmp_path: Path) -> None:
    nan = math.nan
    outcome = Outcome(
        model="m",
        method="yarn",
        candidate="0" * 16,
        original_length=256,
        target_length=1024,
        before=Measured(needle_target=1.4, needle_original=1.1, plain_target=77.0, plain_original=76.0),
        after=Measured(needle_target=1.2, needle_original=1.0, plain_target=68.0, plain_original=69.0),
        after_plain_transformers=Measured(
            needle_target=nan, needle_original=1.05, plain_target=nan, plain_original=80.0
        ),
        kept=Kept(mean_divergence=0.1, same_top=0.7, num_positions=1024),
        num_steps=60,
        num_tokens={"long": 1, "short": 1},
        training_seconds=1.0,
        run_directory="/r",
    )
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "outcome.json").write_text(outcome.to_json())
    rows = compare([tmp_path / "tuned"]).set_index(["task", "length", "factors"])["value"]
    assert rows["needle", 1024, "before"] == 1.4
    assert rows["needle", 1024, "after"] == 1.2
    assert rows["perplexity", 256, "after"] == 69.0
    assert rows["perplexity", 256, "after, plain transformers"] == 80.0
    assert len(rows) == 10  # at the target plain transformers is what "after" is


def test_json_keeps_every_digit_of_a_divergence(tmp_path: Path) -> None:
    row = replace(kept("yarn", "pinned", moved=1.0), sum_divergence=3.21e-12, num_positions=1)
    (record,) = json.loads(written(compare([write_evaluation(tmp_path / "run", retention=[row])]), "json"))
    assert record["value"] == 3.21e-12
    assert (record["length"], record["num_samples"]) == (64, 1)


def test_rows_of_a_table_stand_by_task_and_length_in_the_order_of_the_first_run(tmp_path: Path) -> None:
    scores = [answers(name, task, length, [1.0])[0]
              for name in ("yarn", "none") for task in ("vt", "cwe") for length in (512, 64)]  # fmt: skip
    lines = written(compare([write_evaluation(tmp_path / "run", scores=scores)]), "table").splitlines()[2:]
    expected = [["vt", "percent", "64", "yarn", "100"], ["none", "100"], ["512", "yarn", "100"], ["none", "100"]]
    assert [line.split() for line in lines] == [*expected, ["cwe", *expected[0][1:]], *expected[1:]]


def test_the_command_prints_it(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *map(str, runs), "--format=csv"]) == 0
    assert capsys.readouterr().out == written(compare(runs), "csv")


def test_what_is_no_finished_run_is_refused_in_one_line(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "older").mkdir()
    (tmp_path / "older" / "summary.json").write_text('{"schema_version": 99}')
    (tmp_path / "again" / "search").mkdir(parents=True)
    (tmp_path / "old").mkdir()
    pd.DataFrame({"contender": ["yarn"]}).to_parquet(tmp_path / "old" / "retention.parquet")
    unfinished = write_evaluation(tmp_path / "half", scores=answers("yarn", "vt", 256, [1.0]), is_finished=False)
    for wrong, message in (
        ([tmp_path / "empty"], "a comparison must be of finished runs, got "),
        ([tmp_path / "nowhere"], "a comparison must be of finished runs, got "),
        ([tmp_path / "older"], "older/summary.json: "),
        ([tmp_path / "old"], "old/retention.parquet must have version 1 and the columns "),
        (
            [unfinished],
            "which has neither summary.json nor outcome.json nor any of scores.parquet, text_losses.parquet, ",
        ),
        ([runs[0], tmp_path / "again" / "search"], "runs must have distinct names, got search, search. Drop one"),
    ):
        assert main(["compare", *map(str, wrong)]) == 2
        printed = capsys.readouterr()
        assert printed.err.startswith("ropewalk: error: ")
        assert message in printed.err
        assert printed.out == ""
