"""A run that is told to stop, as `ray job stop` does, ends cleanly and says how to go on."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from results.status import read_status
from results.store import read_measurements
from search.cli import main
from search.stopping import interrupted_by_sigterm

ROOT = Path(__file__).parents[2]


def test_sigterm_is_an_interruption_inside_and_what_it_was_outside() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), interrupted_by_sigterm():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_outside_the_main_thread_nothing_is_changed() -> None:
    seen = []

    def enter() -> None:
        with interrupted_by_sigterm():
            seen.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [before]


def test_a_run_that_is_terminated_keeps_its_documents_and_says_how_to_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    command = [
        sys.executable,
        str(ROOT / "search/run.py"),
        f"--model={ROOT / 'workers/reference/model'}",
        f"--corpus={ROOT / 'workers/reference/tom_sawyer.txt'}",
        "--target-length=512",
        "--formulas.methods=[none, yarn]",
        f"--run-dir={run}",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as driver:
        deadline = time.monotonic() + 120
        while not (run.is_dir() and len(read_measurements(run)) >= 30):
            assert driver.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        driver.send_signal(signal.SIGTERM)
        output, errors = driver.communicate(timeout=30)
    assert driver.returncode == 2
    assert output.strip().splitlines()[-1] == f"resume with: ropewalk search --resume --run-dir {run}"
    assert errors.strip().splitlines()[-1] == (
        "ropewalk: error: interrupted; what was measured so far is kept in the run directory"
    )
    assert read_status(run).state == "stopped"
    assert not list(run.glob("measurements/*.jsonl"))  # flushed
    assert read_status(run).num_documents == len(read_measurements(run)) >= 30
    assert main(["status", str(run)]) == 0
    assert f"resume with: ropewalk search --resume --run-dir {run}" in capsys.readouterr().out
