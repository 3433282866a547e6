"""Taking a run up from its mirror on another machine: whose run it is, and what a killed fetch left."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from time import monotonic, sleep

import pytest

from results.mirror import Mirror
from results.run_directory import RunDirectory

CONFIG = {"model": "models/tiny", "target_length": 1024}
ROOT = Path(__file__).parents[2]
FETCHING = """
import sys
from results.mirror import Mirror

Mirror(sys.argv[1]).fetch(sys.argv[2])
"""


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "run", CONFIG, resume=False)


@pytest.fixture
def mirror(tmp_path: Path, run: RunDirectory) -> Mirror:
    (run.path / "measurements").mkdir()
    (run.path / "measurements" / "part-00000.parquet").write_text("part")
    run.write_text("study.journal", "trials\n")
    mirror = Mirror(tmp_path / "mirror")
    mirror.sync(run.path)
    return mirror


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_a_mirror_says_whose_run_it_holds(tmp_path: Path, run: RunDirectory, mirror: Mirror) -> None:
    other = RunDirectory.create(tmp_path / "other", {**CONFIG, "target_length": 2048}, resume=False)
    before = contents(tmp_path / "mirror")
    assert Mirror(tmp_path / "mirror").holds(run.config_sha256) is True
    assert Mirror(tmp_path / "mirror").holds(other.config_sha256) is False
    assert contents(tmp_path / "mirror") == before


def test_a_mirror_without_a_run_holds_none(tmp_path: Path, run: RunDirectory) -> None:
    assert Mirror(tmp_path / "mirror").holds(run.config_sha256) is None
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "notes.txt").write_text("mine")
    assert Mirror(tmp_path / "mirror").holds(run.config_sha256) is None


def test_an_existing_folder_may_hold_empty_folders(tmp_path: Path, run: RunDirectory, mirror: Mirror) -> None:
    (tmp_path / "new" / "measurements").mkdir(parents=True)
    assert mirror.fetch(tmp_path / "new") == 4
    assert contents(tmp_path / "new") == contents(run.path)


def test_a_fetch_that_was_killed_is_done_anew(tmp_path: Path, run: RunDirectory) -> None:
    for number in range(2000):
        (run.path / f"file-{number:04d}").write_text(str(number))
    Mirror(tmp_path / "mirror").sync(run.path)
    folder = tmp_path / "new"
    with subprocess.Popen([sys.executable, "-c", FETCHING, str(tmp_path / "mirror"), str(folder)], cwd=ROOT) as fetch:
        end = monotonic() + 60
        while len(list(folder.glob("file-*"))) < 5 and monotonic() < end:
            sleep(0.001)
        os.kill(fetch.pid, signal.SIGKILL)
    assert 5 <= len(contents(folder)) < 2002
    assert not RunDirectory.holds_run(folder)
    assert Mirror(tmp_path / "mirror").fetch(folder) == 2002
    assert contents(folder) == contents(run.path)
    assert RunDirectory.create(folder, CONFIG, resume=True).config_sha256 == run.config_sha256


def test_what_a_killed_fetch_left_is_replaced_and_the_lock_stays(
    tmp_path: Path, run: RunDirectory, mirror: Mirror
) -> None:
    folder = tmp_path / "new"
    (folder / "measurements").mkdir(parents=True)
    for name in (
        "config.yaml",
        "study.journal",
        ".status.json.77.tmp",
        "measurements/.part-00000.parquet.77.tmp",
        "measurements/part-00000.jsonl",  # the mirror had it then
        "driver.lock",
    ):
        (folder / name).write_text("old")
    assert mirror.fetch(folder) == 4
    assert contents(folder) == contents(run.path) | {"driver.lock": b"old"}


@pytest.mark.parametrize("name", ["notes.txt", "measurements/part-00007.parquet", "config.sha256", "link"])
def test_a_folder_with_anything_else_in_it_is_refused_and_left_alone(tmp_path: Path, mirror: Mirror, name: str) -> None:
    folder = tmp_path / "new"
    (folder / "measurements").mkdir(parents=True)
    (folder / "study.journal").write_text("old")
    (folder / name).symlink_to(tmp_path) if name == "link" else (folder / name).write_text("mine")
    before = contents(folder)
    with pytest.raises(FileExistsError, match=r"^folder .*new must be new or empty, got one with files in it\. Choose"):
        mirror.fetch(folder)
    assert contents(folder) == before


def test_a_mirror_may_be_named_by_another_spelling(tmp_path: Path, run: RunDirectory, mirror: Mirror) -> None:
    assert Mirror(tmp_path / "gone" / ".." / "mirror").holds(run.config_sha256) is True
