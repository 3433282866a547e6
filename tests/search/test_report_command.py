"""`ropewalk report` on runs that the real command left, and on what is none."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from results.measurement import candidate_key
from results.report_parts.search_progress import num_forwards
from results.status import read_status, write_status
from results.summary import Summary
from rope.factors import load_factors
from search.cli import main
from search.journal import JOURNAL
from search.report_command import read_candidates, read_run
from tests.results.evaluation_runs import answers, write_evaluation
from tests.search.running import HAYSTACK, MODEL, TINY

FIGURES = (
    "Rescale factors by frequency pair",
    "Loss of the searched candidates against forwards spent",
    "Perplexity by the needle&#x27;s depth",
    "Perplexity by method and depth",
    "Searched candidates: what they were and what they lost",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "one"
    words = ["search", f"--model={MODEL}", f"--corpus={HAYSTACK}", "--target-length=512", "--dtype=float32"]
    assert main([*words, f"--run-dir={run}", *TINY, "--algorithm=gradient", "--gradient.num-steps=4"]) == 0
    return run


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copied"))


def reported(output: Path, *runs: Path) -> str:
    assert main(["report", *map(str, runs), "--output", str(output)]) == 0
    return output.read_text(encoding="utf-8")


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(["report", *words]) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith("ropewalk: error: ")
    assert errors.count("\n") == 1
    return errors


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_report_of_a_search_has_every_figure_and_changes_nothing_in_the_run(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(finished)
    page = reported(tmp_path / "page.html", finished)
    assert capsys.readouterr().out == f"report: {tmp_path / 'page.html'}\n"
    assert [figure for figure in FIGURES if figure not in page] == []
    assert "Unfinished" not in page
    assert len(page.encode()) < 5e6
    assert files(finished) == before


def test_every_method_of_the_summary_has_its_factors_and_the_winner_those_of_the_file(finished: Path) -> None:
    record = read_run(finished)
    assert record.summary is not None
    assert len(record.shown) == len(record.summary.methods)
    curves = {one.label: one.candidate.values for one in record.shown if one.candidate is not None}
    assert len(curves) == len(record.shown)
    winner = next(one for one in record.shown if one.is_winner)
    assert curves[winner.label] == load_factors(finished / "factors.json").values
    assert curves["none"] == (1.0,) * 16


def test_candidates_of_the_study_have_the_keys_of_their_factors(finished: Path) -> None:
    factors = load_factors(finished / "factors.json")
    for one in read_candidates(finished):
        assert one.values is not None
        same = factors.with_values(one.values, method=one.method).with_temperature(one.attention_temperature)
        assert candidate_key(same) == one.key


def test_the_forwards_of_the_figure_are_those_that_the_search_counted(finished: Path) -> None:
    summary = Summary.from_json((finished / "summary.json").read_text())
    assert num_forwards(read_run(finished).measurements) == summary.num_search_forwards


def test_a_run_that_was_killed_is_reported_as_far_as_it_came(copied: Path, tmp_path: Path) -> None:
    for name in ("summary.json", "factors.json", "provenance.json"):
        (copied / name).unlink()
    write_status(copied, replace(read_status(copied), state="running"))
    with (copied / JOURNAL).open("ab") as journal:
        journal.write(b'{"op_code": 4, "torn')
    page = reported(tmp_path / "page.html", copied)
    assert "Unfinished: its driver was killed" in page
    assert [figure for figure in FIGURES if figure not in page] == []


@pytest.mark.parametrize("damage", ["missing", "garbage"])
def test_without_its_study_a_run_is_reported_and_the_reader_told(copied: Path, tmp_path: Path, damage: str) -> None:
    (copied / JOURNAL).unlink()
    if damage == "garbage":
        (copied / JOURNAL).write_text("no journal\nat all\n")
    page = reported(tmp_path / "page.html", copied)
    assert "The study could not be read, so that factors and single candidates are left out" in page
    assert "Perplexity by method and depth" in page
    assert (copied / JOURNAL).exists() == (damage == "garbage")


def test_two_runs_are_one_report_and_one_run_twice_is_told_once(finished: Path, copied: Path, tmp_path: Path) -> None:
    page = reported(tmp_path / "page.html", finished, copied, finished)
    assert page.count("<article>") == 2


def test_what_is_no_run_is_refused_in_one_line(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "must be a run directory, got a folder without a run" in refused(capsys, str(tmp_path))
    assert "must be a run directory, got no folder" in refused(capsys, "nowhere")
    shutil.rmtree(copied / "measurements")
    assert "must hold the measurements of a search, got an empty run" in refused(capsys, str(copied))
    assert "run" in refused(capsys)
    assert not (tmp_path / "report.html").exists()


@pytest.fixture(scope="module")
def evaluated(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("evaluations") / "two"
    words = ["evaluate", f"--model={MODEL}", f"--corpus={HAYSTACK}", "--tasks=niah_grid,niah_single_1"]
    words += ["--lengths=256,512", "--depths=0,1", "--num-samples=1", "--methods=none,yarn", "--dtype=float32"]
    assert main([*words, f"--factors={finished}", f"--run-dir={run}"]) == 0
    return run


def test_a_search_and_its_evaluation_are_one_report_which_changes_nothing(
    finished: Path, evaluated: Path, tmp_path: Path
) -> None:
    before = files(evaluated)
    page = reported(tmp_path / "page.html", finished, evaluated)
    assert page.count("<article>") == 2
    assert [figure for figure in FIGURES if figure not in page] == []
    assert page.count("needles found by depth and length in tokens, percent; 1 sample a cell</span>") == 3
    assert "one is the winner of this search: model to 512 tokens, one." in page
    assert "Unfinished" not in page
    assert files(evaluated) == before


def test_an_evaluation_that_was_killed_is_reported_as_far_as_it_came(evaluated: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(evaluated, tmp_path / "killed"))
    (run / "scores.parquet").unlink()
    lines = (run / "scores.jsonl").read_bytes().splitlines(keepends=True)
    (run / "scores.jsonl").write_bytes(b"".join(lines[:3]) + lines[3][:9])
    page = reported(tmp_path / "page.html", run)
    assert "Unfinished: it was stopped or killed; the same command goes on with it." in page
    num_rows = sum(len(json.loads(line)) for line in lines[:3])
    assert f"<dt>answers</dt><dd>{num_rows} samples</dd>" in page


def test_an_empty_or_older_evaluation_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = write_evaluation(tmp_path / "empty")
    assert "must hold the rows of an evaluation, got an empty run" in refused(capsys, str(empty))
    older = write_evaluation(tmp_path / "older", scores=answers("yarn", "vt", 256, [1.0]))
    pd.DataFrame({"contender": ["yarn"]}).to_parquet(older / "scores.parquet")
    assert "scores.parquet must have version 1 and the columns" in refused(capsys, str(older))


def test_another_file_is_not_written_over(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine.html"
    mine.write_text("<p>mine</p>")
    assert "--output must be new or an older report" in refused(capsys, str(finished), "--output", str(mine))
    assert mine.read_text() == "<p>mine</p>"
