import json
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from needles.corpus import SPLITS, Split, read_split, read_texts

EVERYTHING = 10**9


def write_records(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def split_texts(source: Path | str, num_characters: int = EVERYTHING) -> dict[Split, str]:
    return {split: read_split(source, split, num_characters=num_characters).text for split in SPLITS}


@pytest.mark.parametrize("name", ["a.txt", "a.MD"])
def test_a_plain_text_file_is_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("some text")
    assert list(read_texts(tmp_path / name)) == [(name, "some text")]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_json_lines_file_is_read_without_its_blank_records(tmp_path: Path, name: str) -> None:
    write_records(tmp_path / name, ["one", " \n", "two"])
    assert list(read_texts(str(tmp_path / name))) == [(f"{name}:1", "one"), (f"{name}:3", "two")]


def test_the_column_can_be_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["one"], "text": ["no"]}), tmp_path / "a.parquet")
    assert list(read_texts(tmp_path / "a.parquet", column="body")) == [("a.parquet:1", "one")]


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.txt").write_text("second")
    (tmp_path / "a.txt").write_text("first")
    write_records(tmp_path / "c.jsonl", ["third"])
    (tmp_path / "picture.png").write_bytes(b"\xff")
    assert list(read_texts(tmp_path)) == [("a.txt", "first"), ("b/x.txt", "second"), ("c.jsonl:1", "third")]


def test_a_saved_dataset_is_read(tmp_path: Path) -> None:
    table = pa.table({"text": ["one", "two"]})
    with pa.OSFile(str(tmp_path / "dataset.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "dataset.arrow"}]}')
    (tmp_path / "dataset_info.json").write_text("{}")
    assert list(read_texts(tmp_path)) == [("dataset.arrow:1", "one"), ("dataset.arrow:2", "two")]


@pytest.mark.parametrize("source", ["noise", "distractors"])
def test_generated_corpora_never_end_and_have_different_ids(source: str) -> None:
    texts = list(islice(read_texts(source), 1_000))
    assert len({text.id for text in texts}) == 1_000
    assert texts == list(islice(read_texts(source), 1_000))


def test_a_single_text_is_split_by_position_and_no_text_is_lost(tmp_path: Path, book: str) -> None:
    (tmp_path / "book.txt").write_text(book)
    parts = split_texts(tmp_path / "book.txt")
    assert parts["search"] + parts["validation"] + parts["heldout"] == book
    assert len(parts["search"]) == pytest.approx(0.4 * len(book), abs=200)  # a sentence is shorter than 200
    assert len(parts["heldout"]) == pytest.approx(0.4 * len(book), abs=200)


def test_many_records_are_split_by_record(tmp_path: Path) -> None:
    source = write_records(tmp_path / "a.jsonl", [f"record {number}" for number in range(1, 11)])
    parts = split_texts(source)
    assert parts["search"].splitlines() == ["record 1", "record 3", "record 6", "record 8"]
    assert parts["heldout"].splitlines() == ["record 2", "record 4", "record 7", "record 9"]
    assert parts["validation"].splitlines() == ["record 5", "record 10"]


def test_a_repeated_record_does_not_reach_another_split(tmp_path: Path) -> None:
    source = write_records(tmp_path / "a.jsonl", ["same", "same", "one", "same", "two", "three", "four", "same"])
    assert "".join(split_texts(source).values()).count("same") == 1


def test_a_split_does_not_depend_on_how_much_is_read(tmp_path: Path) -> None:
    source = write_records(tmp_path / "a.jsonl", [f"record {number}" for number in range(1_000)])
    whole = split_texts(source)
    for split, text in split_texts(source, num_characters=500).items():
        assert whole[split].startswith(text)
        assert 500 <= len(text) < 520


def test_no_more_of_a_corpus_is_read_than_is_needed(tmp_path: Path) -> None:
    source = write_records(tmp_path / "a.jsonl", [f"record {number}" for number in range(1_000)])
    with source.open("a") as file:
        file.write("a line that is not JSON")
    assert read_split(source, "search", num_characters=500).pieces
    with pytest.raises(ValueError, match=r"a\.jsonl:1001 must be one JSON object"):
        read_split(source, "search", num_characters=EVERYTHING)


def test_distractors_of_different_splits_share_no_key_and_no_value() -> None:
    words = {split: set(text.split()) for split, text in split_texts("distractors", 20_000).items()}
    wording = {"One", "of", "the", "special", "magic", "numbers", "for", "is:"}
    assert words["search"] & words["heldout"] == words["search"] & words["validation"] == wording


def test_noise_is_the_same_in_every_split() -> None:
    assert len(set(split_texts("noise", 5_000).values())) == 1


def test_a_missing_source_is_refused(tmp_path: Path) -> None:
    message = r"must be a file or a folder, got .*nowhere, which does not exist\. Check the path, or use noise or dist"
    with pytest.raises(ValueError, match=message):
        list(read_texts(tmp_path / "nowhere"))


def test_an_unknown_suffix_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x")
    message = r"must end in \.txt, \.md, \.jsonl, \.json, \.parquet, got a\.csv\. Convert it or rename it\."
    with pytest.raises(ValueError, match=message):
        list(read_texts(tmp_path / "a.csv"))


@pytest.mark.parametrize("text", ["", " \n\n"])
def test_a_corpus_without_text_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(ValueError, match=r"the corpus must hold text, got none in .*a\.txt\. Give another file"):
        list(read_texts(tmp_path / "a.txt"))


def test_a_folder_without_corpus_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(ValueError, match=r"a corpus folder must hold \.txt, .* files or a saved dataset, got none in"):
        list(read_texts(tmp_path))


def test_a_folder_of_several_datasets_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text("{}")
    with pytest.raises(ValueError, match=r"must be one dataset, got .* with several: test, train\. Name one of its"):
        list(read_texts(tmp_path))


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match=r"split must be one of search, validation, heldout, got 'test'\. Name one"):
        read_split("noise", "test", num_characters=10)  # type: ignore[arg-type]


def test_a_split_that_gets_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match=r"the search part of .*a\.txt must hold text, got none\. Give a corpus with"):
        read_split(tmp_path / "a.txt", "search", num_characters=10)
