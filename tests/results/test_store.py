"""The store of measurements."""

import math
from dataclasses import asdict
from pathlib import Path

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


def test_what_is_added_is_read_back_in_order(tmp_path: Path) -> None:
    flushed(tmp_path, [measured("b", 0.1 + 0.2), measured("a")], [FAILED])
    frame = read_measurements(tmp_path)
    assert list(frame["document"]) == ["b", "a", "lost"]
    assert frame["sum_nll"][0] == 0.1 + 0.2
    assert frame.iloc[1].drop("failure").to_dict() == {k: v for k, v in asdict(measured("a")).items() if k != "failure"}


def test_a_failure_keeps_its_nan_and_its_reason(tmp_path: Path) -> None:
    flushed(tmp_path, [measured("a"), FAILED])
    frame = read_measurements(tmp_path)
    assert list(frame["sum_nll"].isna()) == [False, True]
    assert list(frame["failure"].isna()) == [True, False]
    assert frame["failure"][1] == "out of memory"


def test_each_flush_writes_one_numbered_part_and_nothing_else(tmp_path: Path) -> None:
    flushed(tmp_path, [measured("a")], [measured("b")])
    assert sorted(path.name for path in (tmp_path / "measurements").iterdir()) == [
        "part-00000.parquet",
        "part-00001.parquet",
    ]


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
    assert pq.read_schema(part).metadata[b"ropewalk_schema_version"] == b"1"


def test_a_run_without_measurements_has_the_columns_and_no_rows(tmp_path: Path) -> None:
    frame = read_measurements(tmp_path)
    assert list(frame.columns) == list(asdict(FAILED))
    assert len(frame) == 0


def test_measurements_that_could_not_be_written_are_kept_for_the_next_flush(tmp_path: Path) -> None:
    (tmp_path / "measurements").write_text("in the way")
    store = MeasurementStore(tmp_path)
    store.add([measured("a")])
    with pytest.raises(OSError, match="File exists"):
        store.flush()
    (tmp_path / "measurements").unlink()
    store.flush()
    assert list(read_measurements(tmp_path)["document"]) == ["a"]


def test_a_directory_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^measurements must be read from a run directory, got .*gone, which is no "):
        read_measurements(tmp_path / "gone")


def test_a_part_that_is_no_parquet_file_is_refused(tmp_path: Path) -> None:
    flushed(tmp_path, [measured("a")])
    (tmp_path / "measurements" / "part-00000.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match=r"^.*part-00000\.parquet must be a Parquet file, got something else\. .*$"):
        read_measurements(tmp_path)


@pytest.mark.parametrize(("metadata", "found"), [(None, "none"), ({"ropewalk_schema_version": "2"}, "2")])
def test_a_part_of_another_schema_version_is_refused(
    tmp_path: Path, metadata: dict[str, str] | None, found: str
) -> None:
    flushed(tmp_path, [measured("a")])
    part = tmp_path / "measurements" / "part-00000.parquet"
    pq.write_table(pq.read_table(part).replace_schema_metadata(metadata), part)
    with pytest.raises(
        ValueError, match=rf"^.*part-00000\.parquet: measurements must have schema version 1, got {found}\. .*$"
    ):
        read_measurements(tmp_path)


def test_a_part_with_other_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "measurements").mkdir()
    table = pa.table({"candidate": ["a"]}).replace_schema_metadata({"ropewalk_schema_version": "1"})
    pq.write_table(table, tmp_path / "measurements" / "part-00000.parquet")
    with pytest.raises(
        ValueError, match=r"^.*part-00000\.parquet must have the columns candidate, document, .*, got candidate\. .*$"
    ):
        read_measurements(tmp_path)
