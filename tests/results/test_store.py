"""The store of measurements."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from time import sleep

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from results.measurement import Measurement
from results.store import MeasurementStore, read_measurements


def measured(document: str, sum_nll: float = 1.5) -> Measurement:
    return Measurement(
        candidate="0123456789abcdef",
        document=document,
        split="search",
        depth=0.25,
        sum_nll=sum_nll,
        num_tokens=8,
        seconds=0.5,
    )


FAILED = Measurement(
    candidate="0123456789abcdef",
    document="lost",
    split="heldout",
    depth=0.75,
    sum_nll=math.nan,
    num_tokens=0,
    seconds=0.1,
    failure="out of memory",
)


def flushed(directory: Path, *parts: list[Measurement]) -> None:
    store = MeasurementStore(directory)
    for part in parts:
        store.add(part)
        store.flush()


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in (directory / "measurements").iterdir())


def test_what_is_added_is_read_back_in_order(tmp_path: Path) -> None:
    flushed(tmp_path, [measured("b", 0.1 + 0.2), measured("a")], [FAILED])
    frame = read_measurements(tmp_path)
    assert list(frame["document"]) == ["b", "a", "lost"]
    assert frame["sum_nll"][0] == 0.1 + 0.2
    missing = ["failure", "flops", "peak_bytes"]
    assert frame.iloc[1].drop(missing).to_dict() == {k: v for k, v in asdict(measured("a")).items() if k not in missing}
    assert frame[missing].isna().iloc[1].all()


def test_a_failure_keeps_its_nan_and_its_reason(tmp_path: Path) -> None:
    flushed(tmp_path, [measured("a"), FAILED])
    frame = read_measurements(tmp_path)
    assert list(frame["sum_nll"].isna()) == [False, True]
    assert list(frame["failure"].isna()) == [True, False]
    assert frame["failure"][1] == "out of memory"


def test_a_gradient_is_kept_bit_for_bit_in_the_journal_and_in_a_part(tmp_path: Path) -> None:
    store = MeasurementStore(tmp_path)
    found = [replace(measured("a"), gradient=(0.1 + 0.2, -1e-300, 5e8)), measured("b"), FAILED]
    store.add(found)
    for _ in range(2):  # from the journal, then from the part
        gradients = list(read_measurements(tmp_path)["gradient"])
        assert gradients[0].tolist() == [0.1 + 0.2, -1e-300, 5e8]
        assert gradients[1:] == [None, None]
        store.flush()
    assert MeasurementStore(tmp_path).recover()[:2] == found[:2]


def test_operations_and_memory_are_kept_in_the_journal_and_in_a_part(tmp_path: Path) -> None:
    store = MeasurementStore(tmp_path)
    found = [replace(measured("a"), flops=6.1375e15, peak_bytes=2**37 + 1), measured("b")]
    store.add(found)
    for _ in range(2):  # from the journal, then from the part
        frame = read_measurements(tmp_path)
        assert (frame["flops"][0], frame["peak_bytes"][0]) == (6.1375e15, 2**37 + 1)
        assert frame[["flops", "peak_bytes"]].isna().iloc[1].all()
        store.flush()
    assert MeasurementStore(tmp_path).recover() == found


@pytest.mark.parametrize(
    ("version", "lacking"), [("1", ["gradient", "flops", "peak_bytes"]), ("2", ["flops", "peak_bytes"])]
)
def test_measurements_of_older_versions_are_read_and_recovered(
    tmp_path: Path, version: str, lacking: list[str]
) -> None:
    folder = tmp_path / "measurements"
    folder.mkdir()
    old = [
        {name: value for name, value in asdict(one).items() if name not in lacking} for one in (measured("a"), FAILED)
    ]
    # The columns and the line of that version, as they were written out in full
    numbers = ["depth", "sum_nll", "seconds"]
    types = {name: pa.float64() if name in numbers else pa.string() for name in old[0]} | {"num_tokens": pa.int64()}
    if version == "2":
        types["gradient"] = pa.list_(pa.field("element", pa.float64(), nullable=False))
    fields = [pa.field(name, kind, nullable=name in ("failure", "gradient")) for name, kind in types.items()]
    table = pa.Table.from_pylist(old, schema=pa.schema(fields, metadata={"ropewalk_schema_version": version}))
    pq.write_table(table, folder / "part-00000.parquet")
    (folder / "part-00001.jsonl").write_text(json.dumps([old[0] | {"document": "b"}]) + "\n")
    store = MeasurementStore(tmp_path)
    new = replace(measured("c"), gradient=(1.0, 2.0), flops=1e9, peak_bytes=2**30)
    store.add([new])
    assert list(read_measurements(tmp_path)["document"]) == ["a", "lost", "b", "c"]
    for name in ("gradient", "flops", "peak_bytes"):
        assert read_measurements(tmp_path)[name].isna().tolist() == [True, True, True, False]
    first, failed, *rest = store.recover()
    assert failed.failure == "out of memory"
    assert [first, *rest] == [measured("a"), measured("b"), new]


def test_each_flush_writes_one_numbered_part_and_nothing_else(tmp_path: Path) -> None:
    flushed(tmp_path, [measured("a")], [measured("b")])
    assert names(tmp_path) == ["part-00000.parquet", "part-00001.parquet"]


def test_a_flush_with_nothing_new_writes_nothing(tmp_path: Path) -> None:
    flushed(tmp_path, [])
    assert list(tmp_path.iterdir()) == []


def test_numbering_continues_after_the_last_part_even_where_one_is_missing(tmp_path: Path) -> None:
    flushed(tmp_path, [measured("a")], [measured("b")])
    (tmp_path / "measurements" / "part-00000.parquet").unlink()
    flushed(tmp_path, [measured("c")])
    assert (tmp_path / "measurements" / "part-00002.parquet").is_file()
    assert list(read_measurements(tmp_path)["document"]) == ["b", "c"]


def test_parts_are_read_by_number_and_other_files_are_left_alone(tmp_path: Path) -> None:
    flushed(tmp_path, [measured("first")])
    folder = tmp_path / "measurements"
    (folder / "part-00000.parquet").rename(folder / "part-99999.parquet")
    (folder / "part-old.parquet").write_text("a copy")
    flushed(tmp_path, [measured("second")], [measured("third")])
    assert list(read_measurements(tmp_path)["document"]) == ["first", "second", "third"]


def test_any_parquet_reader_reads_a_part_and_its_schema_version(tmp_path: Path) -> None:
    flushed(tmp_path, [measured("a"), FAILED])
    part = tmp_path / "measurements" / "part-00000.parquet"
    assert list(pd.read_parquet(part)["document"]) == ["a", "lost"]
    assert pq.read_schema(part).metadata[b"ropewalk_schema_version"] == b"3"


def test_a_run_without_measurements_has_the_columns_and_no_rows(tmp_path: Path) -> None:
    frame = read_measurements(tmp_path)
    assert list(frame.columns) == list(asdict(FAILED))
    assert len(frame) == 0


def test_measurements_that_could_not_be_added_are_not_kept(tmp_path: Path) -> None:
    (tmp_path / "measurements").write_text("in the way")
    store = MeasurementStore(tmp_path)
    with pytest.raises(OSError, match="File exists"):
        store.add([measured("a")])
    (tmp_path / "measurements").unlink()
    store.add([measured("b")])
    store.flush()
    assert list(read_measurements(tmp_path)["document"]) == ["b"]


def test_a_part_that_could_not_be_written_leaves_the_journal_for_another_try(tmp_path: Path) -> None:
    store = MeasurementStore(tmp_path)
    store.add([measured("a")])
    in_the_way = tmp_path / "measurements" / "part-00000.parquet"
    in_the_way.mkdir()
    with pytest.raises(OSError, match="Is a directory"):
        store.flush()
    in_the_way.rmdir()
    assert list(read_measurements(tmp_path)["document"]) == ["a"]
    store.flush()
    assert names(tmp_path) == ["part-00000.parquet"]
    assert list(read_measurements(tmp_path)["document"]) == ["a"]


def test_adding_flushes_by_itself_when_the_time_has_passed(tmp_path: Path) -> None:
    store = MeasurementStore(tmp_path, flush_seconds=0.2)
    store.add([measured("a")])
    assert names(tmp_path) == ["part-00000.jsonl"]
    sleep(0.25)
    store.add([measured("b")])
    store.add([measured("c")])
    assert names(tmp_path) == ["part-00000.parquet", "part-00001.jsonl"]
    assert list(read_measurements(tmp_path)["document"]) == ["a", "b", "c"]


def test_a_flush_that_fails_while_adding_is_said_and_loses_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = MeasurementStore(tmp_path, flush_seconds=0.2)
    store.add([measured("a")])
    in_the_way = tmp_path / "measurements" / "part-00000.parquet"
    in_the_way.mkdir()
    sleep(0.25)
    store.add([measured("b")])
    assert "measurements stay in the journal, a part could not be written: " in caplog.text
    in_the_way.rmdir()
    sleep(0.25)
    store.add([measured("c")])
    assert names(tmp_path) == ["part-00000.parquet"]
    assert list(read_measurements(tmp_path)["document"]) == ["a", "b", "c"]


def test_a_line_is_one_call_and_strict_json(tmp_path: Path) -> None:
    store = MeasurementStore(tmp_path)
    store.add([measured("a"), FAILED])
    store.add([measured("b")])
    lines = (tmp_path / "measurements" / "part-00000.jsonl").read_text().splitlines()
    assert [[record["document"] for record in json.loads(line)] for line in lines] == [["a", "lost"], ["b"]]
    assert json.loads(lines[0])[1] == {**asdict(FAILED), "sum_nll": None}


def test_a_pair_that_is_added_again_replaces_the_older_one(tmp_path: Path) -> None:
    flushed(tmp_path, [measured("a", 1.0), measured("b", 2.0)], [measured("a", 3.0)])
    frame = read_measurements(tmp_path)
    assert list(zip(frame["document"], frame["sum_nll"], strict=True)) == [("b", 2.0), ("a", 3.0)]
    assert MeasurementStore(tmp_path).recover() == [measured("b", 2.0), measured("a", 3.0)]


def test_a_reason_that_is_no_utf_8_is_stored_all_the_same(tmp_path: Path) -> None:
    flushed(tmp_path, [replace(FAILED, failure="no file half-\udc80")])
    assert read_measurements(tmp_path)["failure"][0] == "no file half-?"


def test_a_directory_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^measurements must be read from a run directory, got .*gone, which is no "):
        read_measurements(tmp_path / "gone")


def test_a_part_that_is_no_parquet_file_is_refused(tmp_path: Path) -> None:
    flushed(tmp_path, [measured("a")])
    (tmp_path / "measurements" / "part-00000.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match=r"^.*part-00000\.parquet must be a Parquet file, got something else\. .*$"):
        read_measurements(tmp_path)


@pytest.mark.parametrize(("metadata", "found"), [(None, "none"), ({"ropewalk_schema_version": "4"}, "4")])
def test_a_part_of_another_schema_version_is_refused(
    tmp_path: Path, metadata: dict[str, str] | None, found: str
) -> None:
    flushed(tmp_path, [measured("a")])
    part = tmp_path / "measurements" / "part-00000.parquet"
    pq.write_table(pq.read_table(part).replace_schema_metadata(metadata), part)
    with pytest.raises(
        ValueError, match=rf"^.*part-00000\.parquet: measurements must have schema version 1, 2 or 3, got {found}\. .*$"
    ):
        read_measurements(tmp_path)


@pytest.mark.parametrize("version", ["1", "2", "3"])
def test_a_part_with_other_columns_is_refused(tmp_path: Path, version: str) -> None:
    (tmp_path / "measurements").mkdir()
    table = pa.table({"candidate": ["a"]}).replace_schema_metadata({"ropewalk_schema_version": version})
    pq.write_table(table, tmp_path / "measurements" / "part-00000.parquet")
    with pytest.raises(
        ValueError, match=r"^.*part-00000\.parquet must have the columns candidate, document, .*, got candidate\. .*$"
    ):
        read_measurements(tmp_path)
