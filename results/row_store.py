"""Rows that a running program appends to and that outlive its death: a JSON line a step, a Parquet table at the end."""

import errno
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from results.atomic_file import replacing

ROW_VERSION = 1
"""Of the columns that evaluations write."""
VERSION_KEY = b"ropewalk_row_version"
"""Key of the version in the metadata of a Parquet file."""


class Row(Protocol):
    """A dataclass of what JSON can hold."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


RowType = TypeVar("RowType", bound=Row)


class RowStore(Generic[RowType]):
    """Keeps rows of one kind in a folder; for one writer.

    What was added survives the death of the process at any moment.

    Args:
        folder: It exists.
        name: What the files are called, without an ending.
        kind: The class of the rows; its constructor checks what a file holds.
    """

    def __init__(self, folder: Path, name: str, kind: type[RowType]) -> None:
        self._lines = lines_path(folder, name)
        self._table = table_path(folder, name)
        self._kind = kind

    def add(self, rows: Sequence[RowType]) -> None:
        """Append rows, all or none, whatever kills the process.

        Args:
            rows: New ones; what belongs together.

        Raises:
            OSError: They could not be written.
        """
        # One line, since a kill or a full disk may leave some of several whole
        line = (json.dumps([asdict(row) for row in rows], allow_nan=False) + "\n").encode()
        with self._lines.open("ab", buffering=0) as file:
            size = file.tell()
            try:
                written = file.write(line)
                if written != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._lines))
            except OSError:
                file.truncate(size)
                raise

    def recover(self) -> list[RowType]:
        """Cut off the line in which a killed process ended, and return the rows before it.

        Raises:
            OSError: The file cannot be read or written to.
            ValueError: A line holds something else than such rows.
        """
        if not self._lines.is_file():
            return []
        content = self._lines.read_bytes()
        num_whole = content.rfind(b"\n") + 1
        if num_whole < len(content):
            os.truncate(self._lines, num_whole)
        return _rows_of(content[:num_whole], self._lines, self._kind)

    def finish(self) -> pd.DataFrame:
        """Write all rows as a Parquet file, and return them.

        Returns:
            One row per row, the fields of its class as columns.

        Raises:
            OSError: The file cannot be written.
            ValueError: As `recover`.
        """
        frame = _frame(self.recover(), self._kind)
        table = pa.Table.from_pandas(frame, preserve_index=False)
        metadata = {**(table.schema.metadata or {}), VERSION_KEY: str(ROW_VERSION).encode()}
        with replacing(self._table) as temporary:
            pq.write_table(table.replace_schema_metadata(metadata), temporary)
        return frame


def table_path(folder: Path, name: str) -> Path:
    """Return where the table of a finished store is.

    Args:
        folder: As that of the store.
        name: Likewise.
    """
    return folder / f"{name}.parquet"


def lines_path(folder: Path, name: str) -> Path:
    """Return where the rows of a store are while it is written.

    Args:
        folder: As that of the store.
        name: Likewise.
    """
    return folder / f"{name}.jsonl"


def read_rows(folder: Path, name: str, kind: type[Row]) -> pd.DataFrame:
    """Return what a store holds, finished or not; nothing in its folder is changed.

    Args:
        folder: As that of the store.
        name: Likewise.
        kind: Likewise.

    Returns:
        One row each, the fields of the class as columns; empty where there is no such store.

    Raises:
        ValueError: A file is damaged or of another version.
        OSError: It cannot be read.
    """
    if table_path(folder, name).is_file():
        return _read_table(table_path(folder, name), kind)
    path = lines_path(folder, name)
    content = path.read_bytes() if path.is_file() else b""
    # What follows the last line break is being written, or was when its process died
    return _frame(_rows_of(content[: content.rfind(b"\n") + 1], path, kind), kind)


def _read_table(path: Path, kind: type[Row]) -> pd.DataFrame:
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} must be a Parquet file, got: {error}. Run the evaluation again.") from error
    version = (table.schema.metadata or {}).get(VERSION_KEY, b"none").decode(errors="replace")
    columns = [field.name for field in fields(kind)]
    if version != str(ROW_VERSION) or table.column_names != columns:
        raise ValueError(
            f"{path} must have version {ROW_VERSION} and the columns {', '.join(columns)}, got version {version} and "
            f"{', '.join(table.column_names)}. Read it with the version of Ropewalk that wrote it, or evaluate again."
        )
    frame: pd.DataFrame = table.to_pandas()
    return frame


def _frame(rows: Sequence[Row], kind: type[Row]) -> pd.DataFrame:
    return pd.DataFrame([asdict(row) for row in rows], columns=[field.name for field in fields(kind)])


def _rows_of(content: bytes, path: Path, kind: type[RowType]) -> list[RowType]:
    return [row for line in content.splitlines() for row in _step(line, path, kind)]


def _step(line: bytes, path: Path, kind: type[RowType]) -> list[RowType]:
    try:
        step = json.loads(line)
        if not isinstance(step, list):
            raise TypeError("a step must be a list of rows")
        return [kind(**row) for row in step]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{path} must hold the {path.stem} that Ropewalk writes, got a line with a fault: {error}. Read it with "
            "the version of Ropewalk that wrote it, or start a new evaluation."
        ) from error
