"""The store of measurements: Parquet parts in a run directory, each written once and never changed."""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from results.atomic_file import replacing
from results.measurement import Measurement
from results.schema import MEASUREMENTS, check_version

FOLDER = "measurements"
"""Folder of the parts, inside the run directory."""


class MeasurementStore:
    """Collects measurements and writes them as numbered Parquet parts; for one writer, the driver.

    What was added but not flushed is lost when the process dies; what was flushed stays as it is.

    Args:
        directory: Run directory; the folder `measurements` in it is made at the first flush. The parts that are
            there already are kept, and numbering continues after them.
    """

    def __init__(self, directory: str | Path) -> None:
        self._folder = Path(directory) / FOLDER
        self._waiting: list[Measurement] = []

    def add(self, measurements: Iterable[Measurement]) -> None:
        """Keep measurements in memory until the next flush.

        Args:
            measurements: Losses and failures alike.
        """
        self._waiting.extend(measurements)

    def flush(self) -> None:
        """Write what was added since the last flush as one new part; without any, nothing.

        Raises:
            OSError: The folder cannot be written to; the measurements are kept for another try.
        """
        if not self._waiting:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        table = pa.Table.from_pylist([asdict(measurement) for measurement in self._waiting], schema=MEASUREMENTS)
        with replacing(self._next_part()) as temporary:
            pq.write_table(table, temporary)
        self._waiting.clear()

    def _next_part(self) -> Path:
        last = max((_part_number(part) for part in _parts(self._folder)), default=-1)
        return self._folder / f"part-{last + 1:05d}.parquet"


def read_measurements(directory: str | Path) -> pd.DataFrame:
    """Return all measurements of a run, in the order in which they were added.

    Args:
        directory: Run directory.

    Returns:
        One row per measurement with the fields of `Measurement` as columns; a failure has a NaN `sum_nll` and its
        reason in `failure`, which is missing (`isna`) elsewhere. No rows where nothing was flushed yet.

    Raises:
        ValueError: directory is no folder, a part is no Parquet file, or it has another schema or schema version.
    """
    if not Path(directory).is_dir():
        raise ValueError(f"measurements must be read from a run directory, got {directory}, which is no folder.")
    tables = [_read_part(part) for part in _parts(Path(directory) / FOLDER)]
    frame: pd.DataFrame = pa.concat_tables([MEASUREMENTS.empty_table(), *tables]).to_pandas()
    return frame


def _read_part(part: Path) -> pa.Table:
    try:
        table = pq.ParquetFile(part).read()
    except pa.ArrowInvalid as error:
        raise ValueError(f"{part} must be a Parquet file, got something else. Restore it or remove it.") from error
    try:
        check_version(table.schema)
    except ValueError as error:
        raise ValueError(f"{part}: {error}") from error
    if not table.schema.equals(MEASUREMENTS):
        raise ValueError(
            f"{part} must have the columns {', '.join(MEASUREMENTS.names)} with their types, "
            f"got {', '.join(table.schema.names)}. Restore it or remove it."
        )
    return table


def _parts(folder: Path) -> list[Path]:
    parts = (part for part in folder.glob("part-*.parquet") if _part_digits(part).isdecimal())
    return sorted(parts, key=_part_number)


def _part_number(part: Path) -> int:
    return int(_part_digits(part))


def _part_digits(part: Path) -> str:
    return part.stem.removeprefix("part-")
