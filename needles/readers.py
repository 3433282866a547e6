"""One reader for each kind of file that can hold a corpus. All of them stream."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

BLOCK_CHARACTERS = 8_000_000
"""Longest record made of a plain text file. Any one book is a single record; a larger file becomes several."""

_ROWS_PER_BATCH = 64


class Text(NamedTuple):
    """A record of a corpus."""

    id: str
    """The file's name, with the record's number from 1 where a file holds many."""

    text: str


def read_plain_text(path: Path, name: str) -> Iterator[Text]:
    """Yield a text file in blocks of at most `BLOCK_CHARACTERS`.

    Args:
        path: The file.
        name: What the ids begin with.

    Raises:
        ValueError: the file is not UTF-8.
    """
    offset = 0
    try:
        with path.open(encoding="utf-8-sig") as file:
            while block := file.read(BLOCK_CHARACTERS):
                yield Text(f"{name}@{offset}" if offset else name, block)
                offset += len(block)
    except UnicodeDecodeError as error:
        raise _not_utf8(path, name) from error


def read_json_lines(path: Path, name: str, column: str) -> Iterator[Text]:
    """Yield the strings in one field of a file with one JSON object a line.

    Args:
        path: The file.
        name: What the ids begin with.
        column: The field that holds the text. Null is passed over.

    Raises:
        ValueError: the file is not UTF-8, a line is not a JSON object, or the field is missing or not a string.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield from _json_text(f"{name}:{number}", line, column)
    except UnicodeDecodeError as error:
        raise _not_utf8(path, name) from error


def read_parquet(path: Path, name: str, column: str) -> Iterator[Text]:
    """Yield the strings in one column of a Parquet file.

    Args:
        path: The file.
        name: What the ids begin with.
        column: The column that holds the text. Null is passed over.

    Raises:
        ValueError: the file is not Parquet, the column is missing, or it does not hold UTF-8 strings.
    """
    try:
        with pq.ParquetFile(path) as file:
            _check_column(file.schema_arrow, name, column)
            yield from _texts(file.iter_batches(batch_size=_ROWS_PER_BATCH, columns=[column]), name, column)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{name} must be a whole Parquet file, got: {_first_line(error)} Make it again.") from error


def read_saved_dataset(folder: Path, column: str) -> Iterator[Text]:
    """Yield the strings in one column of a folder written by `datasets.Dataset.save_to_disk`.

    Args:
        folder: The folder that holds state.json.
        column: The column that holds the text. Null is passed over.

    Raises:
        ValueError: state.json is not that of a dataset, a file is not an Arrow stream, the column is missing, or it
            does not hold UTF-8 strings.
    """
    try:
        state = json.loads((folder / "state.json").read_bytes())
        names = [file["filename"] for file in state["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"state.json in {folder} must list the files of a saved dataset, got something else. Save it again."
        ) from error
    for name in names:
        yield from _read_arrow(folder / name, name, column)


def _read_arrow(path: Path, name: str, column: str) -> Iterator[Text]:
    try:
        with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as stream:
            _check_column(stream.schema, name, column)
            yield from _texts(stream, name, column)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(
            f"{name} must be a whole Arrow stream, got: {_first_line(error)} Save the dataset again."
        ) from error


def _texts(batches: Iterable[pa.RecordBatch], name: str, column: str) -> Iterator[Text]:
    number = 0
    for batch in batches:
        for cell in batch.column(column):
            number += 1
            try:
                text = cell.as_py()
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{name}:{number} must be UTF-8 text, got a wrong byte at offset {error.start} of the record. "
                    "Save it as UTF-8."
                ) from error
            if text is not None:
                yield Text(f"{name}:{number}", text)


def _check_column(schema: pa.Schema, name: str, column: str) -> None:
    if column not in schema.names:
        raise ValueError(_missing_column(name, column, schema.names))
    kind = schema.field(column).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise ValueError(f"column {column!r} of {name} must hold strings, got {kind}. Name another column.")


def _json_text(record_id: str, line: str, column: str) -> Iterator[Text]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{record_id} must be one JSON object on one line, got: {error.msg}. Write the file as JSON lines."
        ) from error
    if type(record) is not dict:
        raise ValueError(f"{record_id} must be a JSON object, got {type(record).__name__}. Write one object a line.")
    if column not in record:
        raise ValueError(_missing_column(record_id, column, list(record)))
    text = record[column]
    if text is None:
        return
    if type(text) is not str:
        raise ValueError(
            f"field {column!r} of {record_id} must be a string, got {type(text).__name__}. Name another column."
        )
    yield Text(record_id, _checked_surrogates(record_id, text))


def _checked_surrogates(record_id: str, text: str) -> str:
    """Return the text as it is. JSON can spell half a character, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{record_id} must be UTF-8 text, got half a surrogate pair at character {error.start}. Repair the record."
        ) from error
    return text


def _missing_column(name: str, column: str, columns: list[str]) -> str:
    return (
        f"{name} must have a column {column!r}, got {', '.join(columns) or 'none'}. Name the one that holds the text."
    )


def _not_utf8(path: Path, name: str) -> ValueError:
    return ValueError(
        f"{name} must be UTF-8 text, got a wrong byte at offset {_first_wrong_byte(path)}. Save it as UTF-8."
    )


def _first_wrong_byte(path: Path) -> int:
    """Return the offset in the whole file; Python's own error counts from the start of its buffer."""
    offset = 0
    with path.open("rb") as file:
        for line in file:
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return offset + error.start
            offset += len(line)
    return offset


def _first_line(error: Exception) -> str:
    line = str(error).partition("\n")[0]
    return line if line.endswith(".") else f"{line}."
