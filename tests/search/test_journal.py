"""The study's journal after its writer was killed in the middle of a record."""

import logging
import math
import time
from pathlib import Path

import optuna
import pytest

from rope.yarn import yarn_factors
from search.journal import JOURNAL, mend_journal
from search.study import Trials, open_storage, open_study
from tests.search.telling import tell


def make_study(folder: Path, num_trials: int) -> optuna.Study:
    study = open_study("s", storage=open_storage(None, run_dir=folder), identity={}, note="")
    factors = yarn_factors(32, 1e4, original_length=256, target_length=2048)
    trials = Trials(study)
    for number in range(num_trials):
        asked = trials.ask_formula(factors.with_temperature(1 + number / 10))
        if not asked.is_told:
            tell(trials, asked, math.log(1 + number))
    return study


def reopened(folder: Path) -> optuna.Study:
    return open_study("s", storage=open_storage(None, run_dir=folder), identity={}, note="")


def test_a_torn_last_record_is_cut_off_and_said_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_study(tmp_path, 2)
    whole = (tmp_path / JOURNAL).read_bytes()
    Trials(reopened(tmp_path)).ask_formula(yarn_factors(32, 1e4, original_length=256, target_length=1024))
    record = (tmp_path / JOURNAL).read_bytes()[len(whole) :]
    for num_bytes in (1, len(record) // 2, len(record) - 1):
        (tmp_path / JOURNAL).write_bytes(whole + record[:num_bytes])
        caplog.clear()
        mend_journal(tmp_path)
        assert (tmp_path / JOURNAL).read_bytes() == whole
        assert caplog.messages == [
            f"{tmp_path / JOURNAL} ended in a torn record of {num_bytes} bytes, which is cut off; everything before it "
            "is whole"
        ]
    study = reopened(tmp_path)
    assert [trial.value for trial in study.trials] == [1.0, pytest.approx(2.0)]
    Trials(study).ask_formula(yarn_factors(32, 1e4, original_length=256, target_length=1024))
    assert len(reopened(tmp_path).trials) == 3


def test_a_block_of_zeros_is_a_torn_record_too(tmp_path: Path) -> None:
    make_study(tmp_path, 1)
    whole = (tmp_path / JOURNAL).read_bytes()
    for zeros in (b"\0" * 100, b"\0" * 100 + b"\n"):
        (tmp_path / JOURNAL).write_bytes(whole + zeros)
        mend_journal(tmp_path)
        assert (tmp_path / JOURNAL).read_bytes() == whole


def test_a_whole_journal_is_left_alone_in_silence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mend_journal(tmp_path)
    (tmp_path / JOURNAL).touch()
    mend_journal(tmp_path)
    make_study(tmp_path, 1)
    whole = (tmp_path / JOURNAL).read_bytes()
    with caplog.at_level(logging.DEBUG, logger="search.journal"):
        mend_journal(tmp_path)
    assert (tmp_path / JOURNAL).read_bytes() == whole
    assert caplog.messages == []


def test_the_lock_of_a_dead_writer_is_not_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_study(tmp_path, 1)
    lock = tmp_path / f"{JOURNAL}.lock"
    lock.symlink_to(tmp_path / JOURNAL)  # as Optuna leaves it when it is killed while it writes
    mend_journal(tmp_path)
    assert not lock.is_symlink()
    assert caplog.messages == [f"{lock} was left by a driver that was killed; it is removed"]
    start = time.monotonic()
    make_study(tmp_path, 2)
    assert time.monotonic() - start < 10  # Optuna itself waits 30 seconds for it
