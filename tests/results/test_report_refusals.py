"""What no report is made of, and what none is written over."""

import json
from pathlib import Path

import pytest

from results.report import write_report
from results.report_parts.record import read_record
from results.run_directory import RunDirectory
from tests.results.report_runs import write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "a run")


def test_a_folder_that_holds_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must be a run directory, got a folder without a run\. Give the folder"):
        read_record(tmp_path)
    with pytest.raises(ValueError, match="must be a run directory, got no folder"):
        read_record(tmp_path / "nothing")


def test_an_empty_run_is_refused(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path, {"model": "m"}, resume=False)
    with pytest.raises(ValueError, match=r"must hold the measurements of a search, got an empty run\. Wait"):
        read_record(tmp_path)


def test_a_run_of_another_schema_is_refused_with_its_folder(run: Path) -> None:
    found = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(found | {"schema_version": 1}))
    with pytest.raises(ValueError, match=r"a summary must have schema version 2 or 3, got 1\..* \(in .*a run\)"):
        read_record(run)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("documents.json", '[{"id": "a"}]', "documents.json must be what the run wrote, got something else"),
        ("provenance.json", "[]", "provenance.json must be a JSON object, got something else"),
    ],
)
def test_a_damaged_file_is_refused(run: Path, name: str, content: str, message: str) -> None:
    (run / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_record(run)


def test_a_report_replaces_a_report_and_nothing_else(run: Path, tmp_path: Path) -> None:
    record = read_record(run)
    path = tmp_path / "report.html"
    write_report(path, [record])
    write_report(path, [record])
    assert path.read_text().startswith("<!doctype html>")
    path.write_text("<p>mine</p>")
    with pytest.raises(ValueError, match=r"--output must be new or an older report, got .* which is another file"):
        write_report(path, [record])
    assert path.read_text() == "<p>mine</p>"
    with pytest.raises(ValueError, match="--output must be a file in a folder that exists"):
        write_report(tmp_path / "no" / "report.html", [record])
