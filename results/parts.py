"""Numbered Parquet parts of measurements, each written once and never changed."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from results.atomic_file import replacing
from results.measurement import Measurement
from results.schema import MEASUREMENTS, check_version, in_this_version

PART = ".parquet"
"""Ending of a finished part."""
JOURNAL = ".jsonl"
"""Ending of the journal that becomes a part of the same number."""
TORN = ".torn"
"""What is added to the name of a part that cannot be read."""


class NotParquetError(ValueError):
    """A part is no Parquet file, or one whose bytes are damaged."""


def part_path(folder: Path, number: int, ending: str) -> Path:
    """Return where the part of a number lies, or its journal.

    Args:
        folder: Folder of the parts.
        number: From 0.
        ending: `PART` or `JOURNAL`.
    """
    return folder / f"part-{number:05d}{ending}"


def numbered(folder: Path, ending: str) -> dict[int, Path]:
    """Return the parts of a folder, or their journals, by their number; other files are left alone.

    Args:
        folder: Folder of the parts; none are in one that is missing.
        ending: `PART`, `JOURNAL`, or `PART + TORN`.

    Returns:
        Paths in the order of their numbers.
    """
    found = {path.name.removeprefix("part-").removesuffix(ending): path for path in folder.glob(f"part-*{ending}")}
    return dict(sorted((int(digits), path) for digits, path in found.items() if digits.isdecimal()))


def next_number(folder: Path) -> int:
    """Return the number after every part, journal and torn part of a folder."""
    taken = [*numbered(folder, PART), *numbered(folder, JOURNAL), *numbered(folder, PART + TORN)]
    return max(taken, default=-1) + 1


def measurements_table(measurements: Sequence[Measurement]) -> pa.Table:
    """Return measurements as a table of the stored schema, in their order."""
    return pa.Table.from_pylist([_row(measurement) for measurement in measurements], schema=MEASUREMENTS)


def table_measurements(table: pa.Table) -> list[Measurement]:
    """Return the measurements of a table of the stored schema, in their order.

    Args:
        table: As `measurements_table` or `read_part` returns it.
    """
    return [
        Measurement(**row | {"gradient": None if row["gradient"] is None else tuple(row["gradient"])})
        for row in table.to_pylist()
    ]


def write_part(path: Path, measurements: Sequence[Measurement]) -> None:
    """Write a part, whole or not at all, with a checksum of every page.

    Args:
        path: File to write; its folder exists.
        measurements: What it will hold.

    Raises:
        OSError: The folder is not writable, or the disk is full.
    """
    table = measurements_table(measurements)
    with replacing(path) as temporary:
        pq.write_table(table, temporary, write_page_checksum=True)


def read_part(path: Path) -> pa.Table:
    """Return the table of a part.

    Args:
        path: Parquet file.

    Returns:
        A table of the schema `MEASUREMENTS`; of an older part, without values in the columns that it lacks.

    Raises:
        FileNotFoundError: There is no such file.
        NotParquetError: It is no Parquet file, or its bytes are damaged.
        ValueError: It has another schema version or other columns.
    """
    # Read before it is parsed: an OSError of the disk is no damage, one of the parser is.
    content = path.read_bytes()
    try:
        table = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True).read()
    except (pa.ArrowException, OSError) as error:
        raise NotParquetError(f"{path} must be a Parquet file, got something else. Restore it or remove it.") from error
    try:
        check_version(table.schema)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    table = in_this_version(table)
    if not table.schema.equals(MEASUREMENTS):
        raise ValueError(
            f"{path} must have the columns {', '.join(MEASUREMENTS.names)} with their types, "
            f"got {', '.join(table.schema.names)}. Restore it or remove it."
        )
    return table


def _row(measurement: Measurement) -> dict[str, object]:
    # A reason may quote a file name that is no UTF-8, which Parquet refuses.
    failure = measurement.failure and measurement.failure.encode(errors="replace").decode()
    return asdict(measurement) | {"failure": failure}
