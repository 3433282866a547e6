import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from needles import readers
from needles.readers import Text, read_json_lines, read_parquet, read_plain_text, read_saved_dataset

WRONG_BYTE = b"caf\xe9 noir"


def save_dataset(folder: Path, table: pa.Table) -> None:
    """Write what `datasets.Dataset.save_to_disk` writes for one shard."""
    folder.mkdir(parents=True)
    name = "data-00000-of-00001.arrow"
    with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    state = {"_data_files": [{"filename": name}], "_fingerprint": "0123456789abcdef", "_split": "train"}
    (folder / "state.json").write_text(json.dumps(state))
    features = {column: {"dtype": "string", "_type": "Value"} for column in table.column_names}
    (folder / "dataset_info.json").write_text(json.dumps({"citation": "", "features": features}))


def test_a_text_file_is_one_record_named_after_the_file(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_bytes("\ufeffÜber\r\nalles".encode())
    assert list(read_plain_text(path, "book.txt")) == [Text("book.txt", "Über\nalles")]


def test_a_very_long_text_file_comes_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "BLOCK_CHARACTERS", 4)
    path = tmp_path / "book.txt"
    path.write_text("abcdefghij")
    assert list(read_plain_text(path, "b")) == [Text("b", "abcd"), Text("b@4", "efgh"), Text("b@8", "ij")]


def test_a_wrong_byte_is_named_by_its_offset_in_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_bytes(b"a line of text\n" * 10_000 + WRONG_BYTE)
    message = r"^book\.txt must be UTF-8 text, got a wrong byte at offset 150003\. Save it as UTF-8\.$"
    with pytest.raises(ValueError, match=message):
        list(read_plain_text(path, "book.txt"))


def test_json_lines_give_one_field_and_their_line_numbers(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"body": "one"}\n\n{"body": null}\n{"body": "t\\u00fcr", "other": 1}\n')
    assert list(read_json_lines(path, "rows.jsonl", "body")) == [
        Text("rows.jsonl:1", "one"),
        Text("rows.jsonl:4", "tür"),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", r"^r:2 must be one JSON object on one line, got: .*\. Write the file as JSON lines\.$"),
        (b"[1]", r"^r:2 must be a JSON object, got list\. Write one object a line\.$"),
        (b'{"a": 1, "b": 2}', r"^r:2 must have a column 'text', got a, b\. Name the one that holds the text\.$"),
        (b"{}", r"^r:2 must have a column 'text', got none\."),
        (b'{"text": 3}', r"^field 'text' of r:2 must be a string, got int\. Name another column\.$"),
        (b'{"text": "ab\\ud83d"}', r"^r:2 must be UTF-8 text, got half a surrogate pair at character 2\. Repair"),
        (b'{"text": "' + WRONG_BYTE + b'"}', r"^r must be UTF-8 text, got a wrong byte at offset 30\. Save"),
    ],
)
def test_json_lines_that_cannot_be_read_are_refused(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "good"}\n' + line)
    with pytest.raises(ValueError, match=message):
        list(read_json_lines(path, "r", "text"))


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_parquet_gives_one_column_and_row_numbers(tmp_path: Path, kind: pa.DataType) -> None:
    table = pa.table({"body": pa.array(["one", None, "tür"], kind), "n": [1, 2, 3]})
    pq.write_table(table, tmp_path / "rows.parquet")
    assert list(read_parquet(tmp_path / "rows.parquet", "p", "body")) == [Text("p:1", "one"), Text("p:3", "tür")]


def test_parquet_numbers_run_on_over_batches(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [str(number) for number in range(1, 201)]}), tmp_path / "rows.parquet")
    texts = list(read_parquet(tmp_path / "rows.parquet", "p", "text"))
    assert texts == [Text(f"p:{number}", str(number)) for number in range(1, 201)]


def test_a_saved_dataset_gives_one_column_of_its_arrow_files(tmp_path: Path) -> None:
    save_dataset(tmp_path / "saved", pa.table({"text": ["one", None, "two"], "title": ["a", "b", "c"]}))
    name = "data-00000-of-00001.arrow"
    assert list(read_saved_dataset(tmp_path / "saved", "text")) == [Text(f"{name}:1", "one"), Text(f"{name}:3", "two")]


def test_a_missing_column_is_refused_with_those_that_are_there(tmp_path: Path) -> None:
    table = pa.table({"title": ["a"], "body": ["b"]})
    pq.write_table(table, tmp_path / "rows.parquet")
    save_dataset(tmp_path / "saved", table)
    message = r"must have a column 'text', got title, body\. Name the one that holds the text\.$"
    with pytest.raises(ValueError, match=message):
        list(read_parquet(tmp_path / "rows.parquet", "p", "text"))
    with pytest.raises(ValueError, match=message):
        list(read_saved_dataset(tmp_path / "saved", "text"))


def test_a_column_without_strings_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match=r"^column 'text' of p must hold strings, got int64\. Name another column\.$"):
        list(read_parquet(tmp_path / "rows.parquet", "p", "text"))


def test_a_wrong_byte_in_a_column_is_refused(tmp_path: Path) -> None:
    wrong = pa.array([b"good", WRONG_BYTE]).view(pa.string())
    pq.write_table(pa.table({"text": wrong}), tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match=r"^p:2 must be UTF-8 text, got a wrong byte at offset 3 of the record\. Save"):
        list(read_parquet(tmp_path / "rows.parquet", "p", "text"))


def test_a_file_that_is_not_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").write_text("not at all, though it is long enough")
    with pytest.raises(ValueError, match=r"^p must be a whole Parquet file, got: .+\. Make it again\.$"):
        list(read_parquet(tmp_path / "rows.parquet", "p", "text"))


def test_a_saved_dataset_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    save_dataset(tmp_path / "saved", pa.table({"text": ["one"]}))
    (tmp_path / "saved" / "data-00000-of-00001.arrow").write_bytes(b"ARROW?")
    with pytest.raises(ValueError, match=r"must be a whole Arrow stream, got: .+\. Save the dataset again\.$"):
        list(read_saved_dataset(tmp_path / "saved", "text"))


def test_a_saved_dataset_without_its_arrow_file_is_refused(tmp_path: Path) -> None:
    save_dataset(tmp_path / "saved", pa.table({"text": ["one"]}))
    (tmp_path / "saved" / "data-00000-of-00001.arrow").unlink()
    with pytest.raises(ValueError, match=r"must be a whole Arrow stream, got: .+\. Save the dataset again\.$"):
        list(read_saved_dataset(tmp_path / "saved", "text"))


@pytest.mark.parametrize("state", ["{", "{}", "[]", '{"_data_files": ["a.arrow"]}'])
def test_a_state_that_lists_no_files_is_refused(tmp_path: Path, state: str) -> None:
    (tmp_path / "state.json").write_text(state)
    with pytest.raises(ValueError, match=r"^state\.json in .* must list the files of a saved dataset, got something"):
        list(read_saved_dataset(tmp_path, "text"))
