"""Provenance."""

import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import asdict
from datetime import UTC, datetime, timedelta, timezone
from importlib import metadata
from pathlib import Path

import pytest

from results import provenance
from results.provenance import gather

STARTED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=2)))


def test_versions_are_those_that_are_installed() -> None:
    found = gather(seed=7, started=STARTED)
    assert found.seed == 7
    assert found.python == platform.python_version()
    assert found.versions["torch"] == metadata.version("torch")
    assert found.versions["optuna"] == metadata.version("optuna")
    assert found.platform == platform.platform()
    assert 1 <= found.num_cpus <= (os.cpu_count() or 1)


def test_a_distribution_that_is_missing_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "DISTRIBUTIONS", ("no-such-distribution",))
    assert gather(seed=0, started=STARTED).versions == {"no-such-distribution": None}


def test_timestamps_are_utc() -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    found = gather(seed=0, started=STARTED)
    assert found.started == "2026-01-02T01:04:05+00:00"
    assert before <= datetime.fromisoformat(found.gathered) <= datetime.now(UTC)


def test_the_command_line_can_be_pasted_into_a_shell() -> None:
    found = gather(seed=0, started=STARTED, command=["ropewalk", "search", "--model", "my model"])
    assert found.command == "ropewalk search --model 'my model'"


def test_the_command_line_is_this_process_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["search/run.py", "--seed", "3"])
    assert gather(seed=3, started=STARTED).command == "search/run.py --seed 3"


def test_what_only_the_caller_knows_is_kept_and_all_of_it_is_json() -> None:
    found = gather(seed=0, started=STARTED, accelerators=["NVIDIA H200"], hashes={"corpus": "ab" * 32})
    document = json.loads(json.dumps(asdict(found)))
    assert document["accelerators"] == ["NVIDIA H200"]
    assert document["hashes"] == {"corpus": "ab" * 32}


def test_nothing_heavy_is_imported() -> None:
    program = "import sys, results.provenance; sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_commit_is_that_of_the_checkout_with_a_mark_where_files_were_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = tmp_path / "checkout"
    monkeypatch.setattr(provenance, "__file__", str(checkout / "results" / "provenance.py"))
    git = ["git", "-C", str(checkout), "-c", "user.name=n", "-c", "user.email=e@example.org"]
    subprocess.run(["git", "init", "--quiet", str(checkout)], check=True)
    assert gather(seed=0, started=STARTED).git_commit is None
    (checkout / "file").write_text("one")
    subprocess.run([*git, "add", "file"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--message=first"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert gather(seed=0, started=STARTED).git_commit == head
    (checkout / "file").write_text("two")
    assert gather(seed=0, started=STARTED).git_commit == f"{head}-dirty"


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_below_somebody_elses_checkout_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "site-packages" / "results" / "provenance.py"))
    assert gather(seed=0, started=STARTED).git_commit is None
