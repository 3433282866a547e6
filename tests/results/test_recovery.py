"""What the store keeps when its process is killed, its files are torn or its disk is full."""

import math
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest

from results.measurement import Measurement
from results.store import MeasurementStore, read_measurements

FAILURE = "out of memory: " + "a long reason, " * 20


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


def failed(number: int) -> Measurement:
    return Measurement(
        candidate="0123456789abcdef",
        document=f"document-{number}",
        split="search",
        depth=0.25,
        sum_nll=math.nan,
        num_tokens=0,
        seconds=0.5,
        failure=FAILURE,
    )


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in (directory / "measurements").iterdir())


def documents(directory: Path) -> list[str]:
    return list(read_measurements(directory)["document"])


def added(directory: Path, *numbers: int) -> MeasurementStore:
    store = MeasurementStore(directory)
    for number in numbers:
        store.add([measured(number)])
    return store


ADDING = """
import sys
from pathlib import Path
from tests.results.test_recovery import measured
from results.store import MeasurementStore

store = MeasurementStore(Path(sys.argv[1]), flush_seconds=0.02)
number = 0
while True:
    store.add([measured(number), measured(number + 1)])
    number += 2
    print(number, flush=True)
"""


def test_a_killed_driver_loses_nothing_that_it_added(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    for kill_after in (1, 40, 333):
        run = tmp_path / str(kill_after)
        command = [sys.executable, "-c", ADDING, str(run)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as driver:
            assert driver.stdout is not None
            for _ in range(kill_after):
                driver.stdout.readline()
            os.kill(driver.pid, signal.SIGKILL)
            acknowledged = [2 * kill_after, *(int(line) for line in driver.stdout if line.endswith("\n"))][-1]
        recovered = MeasurementStore(run).recover()
        assert recovered == [measured(number) for number in range(len(recovered))]
        assert len(recovered) in (acknowledged, acknowledged + 2)  # the kill may fall between adding and saying so
        assert all(name.endswith(".parquet") for name in names(run))
        assert documents(run) == [measurement.document for measurement in recovered]


def test_a_run_without_measurements_recovers_none_and_makes_nothing(tmp_path: Path) -> None:
    assert MeasurementStore(tmp_path).recover() == []
    assert list(tmp_path.iterdir()) == []


def test_what_is_recovered_equals_what_was_added_failures_included(tmp_path: Path) -> None:
    store = MeasurementStore(tmp_path)
    store.add([measured(0), failed(1)])
    store.flush()
    store.add([failed(2), measured(3)])
    found = MeasurementStore(tmp_path).recover()
    assert [repr(measurement) for measurement in found] == [  # NaN equals nothing, but is written the same
        repr(measurement) for measurement in (measured(0), failed(1), failed(2), measured(3))
    ]
    assert names(tmp_path) == ["part-00000.parquet", "part-00001.parquet"]


def test_a_store_goes_on_after_what_it_recovered(tmp_path: Path) -> None:
    added(tmp_path, 0, 1)
    store = MeasurementStore(tmp_path)
    store.recover()
    store.add([measured(2)])
    assert store.recover() == [measured(0), measured(1), measured(2)]
    assert store.recover() == [measured(0), measured(1), measured(2)]
    assert names(tmp_path) == ["part-00000.parquet", "part-00001.parquet"]


def test_a_torn_last_line_is_cut_off_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    added(tmp_path, 0, 1)
    journal = tmp_path / "measurements" / "part-00000.jsonl"
    with journal.open("ab") as file:
        file.write(b'[{"candidate": "01')
    before = journal.read_bytes()
    assert documents(tmp_path) == ["document-0", "document-1"]
    assert journal.read_bytes() == before
    assert MeasurementStore(tmp_path).recover() == [measured(0), measured(1)]
    assert f"{journal} ended in a torn line: 18 bytes were cut off and are measured again" in caplog.text


def test_a_line_without_its_end_is_torn_even_where_it_could_be_read(tmp_path: Path) -> None:
    added(tmp_path, 0, 1)
    journal = tmp_path / "measurements" / "part-00000.jsonl"
    journal.write_bytes(journal.read_bytes()[:-1])
    assert MeasurementStore(tmp_path).recover() == [measured(0)]


@pytest.mark.parametrize("torn", [b"", b"PAR1", b"half"], ids=["empty", "begun", "cut"])
def test_a_torn_part_is_set_aside_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture, torn: bytes) -> None:
    for number in range(2):
        added(tmp_path, number).flush()
    part = tmp_path / "measurements" / "part-00001.parquet"
    part.write_bytes(part.read_bytes()[: part.stat().st_size // 2] if torn == b"half" else torn)
    num_bytes = part.stat().st_size
    store = MeasurementStore(tmp_path)
    assert store.recover() == [measured(0)]
    assert f"{part} was no Parquet file ({num_bytes} bytes) and is now part-00001.parquet.torn;" in caplog.text
    store.add([measured(1)])
    store.flush()
    assert names(tmp_path) == ["part-00000.parquet", "part-00001.parquet.torn", "part-00002.parquet"]
    assert documents(tmp_path) == ["document-0", "document-1"]


def test_bytes_that_changed_on_the_disk_are_noticed(tmp_path: Path) -> None:
    store = MeasurementStore(tmp_path)
    store.add([measured(number) for number in range(500)])
    store.flush()
    part = tmp_path / "measurements" / "part-00000.parquet"
    content = bytearray(part.read_bytes())
    content[len(content) // 4] ^= 1
    part.write_bytes(content)
    assert MeasurementStore(tmp_path).recover() == []


def test_a_journal_whose_part_was_written_is_removed(tmp_path: Path) -> None:
    store = added(tmp_path, 0)
    journal = tmp_path / "measurements" / "part-00000.jsonl"
    line = journal.read_bytes()
    store.flush()
    journal.write_bytes(line)
    assert documents(tmp_path) == ["document-0"]
    assert journal.exists()
    assert MeasurementStore(tmp_path).recover() == [measured(0)]
    assert names(tmp_path) == ["part-00000.parquet"]


def test_a_journal_stands_in_for_its_torn_part(tmp_path: Path) -> None:
    added(tmp_path, 0)
    (tmp_path / "measurements" / "part-00000.parquet").write_bytes(b"PAR1")
    assert MeasurementStore(tmp_path).recover() == [measured(0)]
    assert names(tmp_path) == ["part-00000.parquet", "part-00000.parquet.torn"]


def test_what_a_part_was_being_written_to_is_removed(tmp_path: Path) -> None:
    added(tmp_path, 0)
    (tmp_path / "measurements" / ".part-00000.parquet.77.tmp").write_bytes(b"PAR1")
    MeasurementStore(tmp_path).recover()
    assert names(tmp_path) == ["part-00000.parquet"]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b"[1]", "1 is no measurement"),
        (b"7", "'int' object is not iterable"),
        (b'[{"colour": 1}]', ".*unexpected keyword argument 'colour'"),
    ],
)
def test_a_journal_of_another_version_is_refused_and_kept(tmp_path: Path, line: bytes, fault: str) -> None:
    (tmp_path / "measurements").mkdir()
    (tmp_path / "measurements" / "part-00000.jsonl").write_bytes(line + b"\n")
    with pytest.raises(
        ValueError, match=rf"^.*part-00000\.jsonl must hold the measurements that .*, got a line with a fault: {fault}"
    ):
        MeasurementStore(tmp_path).recover()
    assert names(tmp_path) == ["part-00000.jsonl"]


def test_a_running_run_can_be_read_at_any_moment(tmp_path: Path) -> None:
    store = MeasurementStore(tmp_path, flush_seconds=0.0)
    store.add([measured(0)])

    def add_many() -> None:
        for number in range(1, 300):
            store.add([measured(number)])

    driver = Thread(target=add_many)
    driver.start()
    lengths = [0]
    while driver.is_alive():
        found = documents(tmp_path)
        assert found == [f"document-{number}" for number in range(len(found))]
        lengths.append(len(found))
    driver.join()
    assert lengths == sorted(lengths)
    assert len(documents(tmp_path)) == 300


def test_a_file_that_leads_nowhere_is_an_error_and_no_endless_search(tmp_path: Path) -> None:
    (tmp_path / "measurements").mkdir()
    (tmp_path / "measurements" / "part-00000.parquet").symlink_to(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match=r"part-00000\.parquet"):
        read_measurements(tmp_path)


@contextmanager
def no_file_longer_than(num_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_line_that_does_not_fit_leaves_no_half_of_it(tmp_path: Path) -> None:
    store = added(tmp_path, 0)
    journal = tmp_path / "measurements" / "part-00000.jsonl"
    before = journal.read_bytes()
    with no_file_longer_than(len(before) + 20), pytest.raises(OSError, match="File too large"):
        store.add([measured(1)])
    assert journal.read_bytes() == before
    store.add([measured(2)])
    assert MeasurementStore(tmp_path).recover() == [measured(0), measured(2)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if mounted.returncode != 0:
        pytest.skip(f"a disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk_loses_nothing_that_was_added_before(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    (small_disk / "ballast").write_bytes(bytes(100_000))
    run = small_disk / "run"
    run.mkdir()
    store = MeasurementStore(run, flush_seconds=0.0)
    store.add([measured(0)])
    store = MeasurementStore(run)
    expected = [measured(0)]

    def add_until_full() -> None:
        while True:
            store.add([measured(len(expected))])
            expected.append(measured(len(expected)))

    with pytest.raises(OSError, match="No space left on device"):
        add_until_full()
    journal = run / "measurements" / "part-00001.jsonl"
    assert journal.read_bytes().endswith(b"]\n")
    with pytest.raises(OSError, match="No space left on device"):
        store.flush()
    assert names(run) == ["part-00000.parquet", "part-00001.jsonl"]
    assert len(documents(run)) == len(expected)
    (small_disk / "ballast").unlink()
    store.add([measured(-1)])
    assert MeasurementStore(run).recover() == [*expected, measured(-1)]
    assert names(run) == ["part-00000.parquet", "part-00001.parquet"]
