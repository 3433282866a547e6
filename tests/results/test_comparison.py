"""Tables across runs: every number is that of the run's own file, and what is no finished run is refused."""

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from results.comparison import compare, written
from results.evaluation import SampleScore, ScoreStore
from results.summary import MethodResult, Summary
from search.cli import main

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
    store = ScoreStore(paths[1])
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
    for wrong, message in (
        ([tmp_path / "empty"], "a comparison must be of finished runs, got "),
        ([tmp_path / "nowhere"], "a comparison must be of finished runs, got "),
        ([tmp_path / "older"], "older/summary.json: "),
        ([runs[0], tmp_path / "again" / "search"], "runs must have distinct names, got search, search. Drop one"),
    ):
        assert main(["compare", *map(str, wrong)]) == 2
        printed = capsys.readouterr()
        assert printed.err.startswith("ropewalk: error: ")
        assert message in printed.err
        assert printed.out == ""
