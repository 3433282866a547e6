"""One driver per run directory."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from threading import Timer
from time import monotonic

import pytest

from results.run_lock import RunLock, is_locked

HOLDING = """
import sys, time
from results.run_lock import RunLock

with RunLock(sys.argv[1]):
    print("locked", flush=True)
    time.sleep(60)
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    """Start another process that holds the lock of a folder."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", HOLDING, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root)
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    return process


def test_a_second_driver_is_refused_by_the_name_of_the_first(tmp_path: Path) -> None:
    with holder(tmp_path) as first:
        with (
            pytest.raises(
                ValueError,
                match=rf"^run directory {tmp_path} must have one driver, got a second while pid {first.pid} on host "
                rf"{re.escape(socket.gethostname())} works on it since \d{{4}}-\d\d-\d\dT[\d:]+\+00:00\. "
                r"Wait for it, or stop it\.$",
            ),
            RunLock(tmp_path),
        ):
            pass
        assert is_locked(tmp_path)
        first.kill()


def test_the_lock_of_a_killed_driver_is_free_at_once(tmp_path: Path) -> None:
    with holder(tmp_path) as first:
        os.kill(first.pid, signal.SIGKILL)
    assert not is_locked(tmp_path)
    with RunLock(tmp_path):
        assert is_locked(tmp_path)


def test_a_child_process_that_outlives_its_driver_does_not_hold_the_lock(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        child = subprocess.Popen(["sleep", "60"])
    try:
        assert not is_locked(tmp_path)
    finally:
        child.kill()
        child.wait()


def test_one_process_is_refused_a_second_time_too(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        with pytest.raises(ValueError, match=rf"got a second while pid {os.getpid()} on host "), RunLock(tmp_path):
            pass
        assert is_locked(tmp_path)
    assert not is_locked(tmp_path)


def test_the_lock_can_be_taken_again_and_names_its_new_holder(tmp_path: Path) -> None:
    (tmp_path / "driver.lock").write_text("a-host-with-a-longer-name.example.org 1 2026-01-01T00:00:00+00:00\n")
    for _ in range(2):
        with RunLock(tmp_path):
            assert (tmp_path / "driver.lock").read_text().startswith(f"{socket.gethostname()} {os.getpid()} 20")
    assert len((tmp_path / "driver.lock").read_text().splitlines()) == 1


def test_an_error_inside_releases_the_lock(tmp_path: Path) -> None:
    with pytest.raises(KeyError), RunLock(tmp_path):
        raise KeyError
    assert not is_locked(tmp_path)


def test_a_driver_is_not_refused_because_somebody_asks_whether_there_is_one(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    lock.__enter__()
    Timer(0.3, lambda: lock.__exit__(None, None, None)).start()
    start = monotonic()
    with RunLock(tmp_path):
        assert monotonic() - start > 0.2


def test_asking_makes_nothing(tmp_path: Path) -> None:
    assert not is_locked(tmp_path)
    assert not is_locked(tmp_path / "gone")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    assert not is_locked(tmp_path / "file")


def test_a_holder_that_left_no_name_is_refused_all_the_same(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        (tmp_path / "driver.lock").write_text("")
        with pytest.raises(ValueError, match=r"got a second while another process works on it\. "), RunLock(tmp_path):
            pass


@pytest.mark.parametrize(("name", "reason"), [("file", "File exists"), ("file/run", "Not a directory")])
def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with (
        pytest.raises(
            ValueError,
            match=rf"^run directory .* must be a folder that can be written to and locked, got: {reason}\. "
            r"Choose another with --run-dir\.$",
        ),
        RunLock(tmp_path / name),
    ):
        pass
