"""What the store keeps when a signal raises an exception on any of its lines, as SIGTERM does in a driver."""

from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path

import pytest

from results.measurement import Measurement
from results.store import MeasurementStore, read_measurements
from tests.results.stopping import interrupted_at


def measured(number: int) -> Measurement:
    return Measurement(
        candidate="0123456789abcdef",
        document=f"document-{number}",
        split="search",
        depth=0.25,
        sum_nll=0.1 + number,
        num_tokens=8,
        seconds=0.5,
    )


def documents(directory: Path) -> list[str]:
    return list(read_measurements(directory)["document"])


@pytest.mark.parametrize("flush_seconds", [60.0, 0.0], ids=["journal", "part"])
def test_an_interrupted_add_is_kept_whole_or_not_at_all(tmp_path: Path, flush_seconds: float) -> None:
    outcomes = []
    for step in count():
        run = tmp_path / str(step)
        store = MeasurementStore(run, flush_seconds=flush_seconds)
        store.add([measured(0)])
        was_interrupted = interrupted_at(step, partial(store.add, [measured(1), measured(2)]))
        on_disk = documents(run)
        store.flush()
        assert documents(run) == on_disk
        assert [measurement.document for measurement in MeasurementStore(run).recover()] == on_disk
        outcomes.append(on_disk)
        if not was_interrupted:
            break
    both = [["document-0"], ["document-0", "document-1", "document-2"]]
    assert [outcome for outcome in both if outcome in outcomes] == both
    assert all(outcome in both for outcome in outcomes)
    assert outcomes[-1] == both[1]


@pytest.mark.parametrize("act", ["add", "flush"])
def test_what_is_added_after_an_interruption_is_kept_with_all_before(tmp_path: Path, act: str) -> None:
    for step in count():
        run = tmp_path / str(step)
        store = MeasurementStore(run)
        store.add([measured(0)])
        was_interrupted = interrupted_at(step, partial(store.add, [measured(1)]) if act == "add" else store.flush)
        before = documents(run)
        store.add([measured(2)])
        assert documents(run) == [*before, "document-2"]  # as after kill -9
        recovered = MeasurementStore(run).recover()
        assert [measurement.document for measurement in recovered] == [*before, "document-2"]
        if not was_interrupted:
            break


def test_an_add_that_fails_after_an_interrupted_one_leaves_the_line_of_that_one(tmp_path: Path) -> None:
    for step in count():
        run = tmp_path / str(step)
        store = MeasurementStore(run)
        store.add([measured(0)])
        was_interrupted = interrupted_at(step, partial(store.add, [measured(1)]))
        before = documents(run)
        journal = run / "measurements" / "part-00000.jsonl"
        aside = journal.rename(run / "aside")
        journal.mkdir()
        with suppress(OSError):
            store.add([measured(2)])
        journal.rmdir()
        aside.rename(journal)
        assert documents(run) == before
        store.add([measured(3)])
        assert documents(run) == [*before, "document-3"]
        if not was_interrupted:
            break
