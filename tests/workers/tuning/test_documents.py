"""Documents tokenised once: the tokens, what is kept, and what cannot be read."""

import json
import logging
import pickle
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from workers.tuning.documents import TokenisedDocuments, special_tokens, tokenise
from workers.tuning.mixture import MixtureConfig, PackStream

TEXTS = [f"The {number}. rope is {number} metres long.\n" * (number + 1) for number in range(12)]
REFERENCE = Path(__file__).parents[3] / "workers" / "reference" / "model"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    loaded = AutoTokenizer.from_pretrained(REFERENCE)
    assert isinstance(loaded, PreTrainedTokenizerFast)
    return loaded


def write_json_lines(path: Path, texts: list[str], column: str = "text") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({column: text}) + "\n" for text in texts))
    return path


def texts_of(documents: TokenisedDocuments, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    return [str(tokenizer.decode(documents.ids(index).tolist())) for index in range(len(documents))]


def test_every_kind_of_source_gives_the_tokens_of_its_texts_without_special_ones(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    write_json_lines(tmp_path / "mixed" / "a.jsonl", TEXTS[:3])
    (tmp_path / "mixed" / "deeper").mkdir()
    pq.write_table(pa.table({"text": TEXTS[3:6]}), tmp_path / "mixed" / "deeper" / "b.parquet")
    (tmp_path / "mixed" / "e.txt").write_text(TEXTS[6])
    (tmp_path / "mixed" / "f.md").write_text(TEXTS[7])
    write_json_lines(tmp_path / "mixed" / "g.json", TEXTS[8:9])
    (tmp_path / "mixed" / "notes.pdf").write_bytes(b"no text")
    datasets.Dataset.from_dict({"text": TEXTS[9:]}).save_to_disk(str(tmp_path / "saved"))
    sources = {"mixed": tmp_path / "mixed", "saved": tmp_path / "saved"}
    documents = tokenise(sources, tokenizer, tmp_path / "kept")
    assert texts_of(documents, tokenizer) == TEXTS
    # The tokenizer's own call puts <s> before a text.
    for index, text in enumerate(TEXTS):
        assert [tokenizer.bos_token_id, *documents.ids(index)] == tokenizer(text)["input_ids"]
    assert documents.lengths.tolist() == [len(documents.ids(index)) for index in range(12)]
    assert documents.source_names == ("mixed", "saved")
    assert documents.source_indices.tolist() == [0] * 9 + [1] * 3
    assert documents.ids(0).dtype == np.int32
    assert documents.name(4) == "mixed: b.parquet:2"


def test_the_tokens_are_the_same_from_several_processes(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    write_json_lines(tmp_path / "data" / "a.jsonl", TEXTS[:7])
    write_json_lines(tmp_path / "data" / "b.jsonl", TEXTS[7:])
    one = tokenise({"data": tmp_path / "data"}, tokenizer, tmp_path / "one")
    two = tokenise({"data": tmp_path / "data"}, tokenizer, tmp_path / "two", num_processes=2)
    assert [one.ids(index).tolist() for index in range(12)] == [two.ids(index).tolist() for index in range(12)]
    assert one.fingerprint == two.fingerprint


def test_tokens_are_made_once_and_again_only_where_content_tokenizer_or_column_changed(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    file = write_json_lines(tmp_path / "a.jsonl", TEXTS)
    kept = tmp_path / "kept"
    first = tokenise({"data": file}, tokenizer, kept)
    times = {path: path.stat().st_mtime_ns for path in kept.rglob("*")}
    moved = tmp_path / "elsewhere" / "a.jsonl"
    moved.parent.mkdir()
    again = tokenise({"data": file.rename(moved)}, tokenizer, kept)
    assert {path: path.stat().st_mtime_ns for path in kept.rglob("*")} == times
    assert again.fingerprint == first.fingerprint
    lines = [json.dumps({"text": text, "body": text}) + "\n" for text in TEXTS]
    moved.write_text("".join(lines))
    changed = tokenise({"data": moved}, tokenizer, kept)
    other_column = tokenise({"data": moved}, tokenizer, kept, column="body")
    other_tokenizer = AutoTokenizer.from_pretrained(REFERENCE)
    other_tokenizer.add_tokens(["metres long"])
    other = tokenise({"data": moved}, other_tokenizer, kept)
    assert len({documents.fingerprint for documents in (first, changed, other_column, other)}) == 4
    assert other.lengths.sum() < first.lengths.sum()
    assert sorted(path.name for path in kept.iterdir()) == sorted(
        documents.fingerprint[:16] for documents in (first, changed, other_column, other)
    )


def test_documents_travel_to_another_process_as_a_path(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    texts = [" ".join(TEXTS)] * 200
    documents = tokenise({"data": write_json_lines(tmp_path / "a.jsonl", texts)}, tokenizer, tmp_path / "kept")
    packed = pickle.dumps(documents)
    assert len(packed) < documents.lengths.sum() / 10
    assert pickle.loads(packed).ids(150).tolist() == documents.ids(150).tolist()


def test_packs_hold_the_tokens_of_the_files(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    documents = tokenise({"data": write_json_lines(tmp_path / "a.jsonl", TEXTS)}, tokenizer, tmp_path / "kept")
    config = MixtureConfig(short_min_tokens=4).resolve(original_length=64, target_length=256)
    packs = PackStream(documents, config, special_tokens(tokenizer), 0, num_packs=6)
    assert {pack.window for pack in packs} == {"short", "long"}
    for pack in packs:
        text = str(tokenizer.decode(pack.token_ids.tolist()))
        whole = [f"<s>{TEXTS[document]}</s>" for document in pack.documents[:-1]]
        assert text.startswith("".join(whole))
        assert f"<s>{TEXTS[pack.documents[-1]]}</s>".startswith(text.removeprefix("".join(whole)))


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_file_that_cannot_be_read_is_named_and_left_out_whole_only_where_asked(
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerFast,
    caplog: pytest.LogCaptureFixture,
    num_processes: int,
) -> None:
    data = tmp_path / "data"
    write_json_lines(data / "a.jsonl", TEXTS[:2])
    torn = write_json_lines(data / "b.jsonl", TEXTS[2:4])
    torn.write_text(torn.read_text() + '{"text": "half a li')
    (data / "c.parquet").write_bytes(b"PAR1 and nothing else")
    write_json_lines(data / "d.jsonl", TEXTS[4:])
    message = f"every file of the data must be readable to its end, got {torn}: b.jsonl:3 must be one JSON object"
    with pytest.raises(ValueError) as caught:
        tokenise({"data": data}, tokenizer, tmp_path / "kept", num_processes=num_processes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "kept").iterdir())
    with caplog.at_level(logging.WARNING):
        documents = tokenise(
            {"data": data}, tokenizer, tmp_path / "kept", num_processes=num_processes, skip_unreadable=True
        )
    assert texts_of(documents, tokenizer) == [*TEXTS[:2], *TEXTS[4:]]
    assert [problem.split(": ")[0] for problem in documents.skipped] == [str(torn), str(data / "c.parquet")]
    assert all(problem in caplog.text for problem in documents.skipped)
    with pytest.raises(ValueError, match="readable to its end"):  # what was left out is not forgotten
        tokenise({"data": data}, tokenizer, tmp_path / "kept")


@pytest.mark.parametrize("pattern", ["manifest.json", "documents/*.arrow"])
def test_kept_tokens_that_are_damaged_are_named(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, pattern: str
) -> None:
    source, kept = write_json_lines(tmp_path / "a.jsonl", TEXTS), tmp_path / "kept"
    tokenise({"a": source}, tokenizer, kept)
    (folder,) = kept.iterdir()
    (damaged,) = folder.glob(pattern)
    damaged.write_bytes(damaged.read_bytes()[:100])
    with pytest.raises(ValueError, match=f"the tokens that are kept in {folder} must be whole, got: .* Remove that"):
        tokenise({"a": source}, tokenizer, kept)


def test_data_that_is_not_there_is_an_error_even_where_files_may_be_left_out(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    def refusal(sources: dict[str, Path], column: str = "text") -> str:
        with pytest.raises(ValueError) as caught:
            tokenise(sources, tokenizer, tmp_path / "kept", column=column, skip_unreadable=True)
        return str(caught.value)

    assert refusal({}) == "the data must be one source or more, got none. Name files or folders."
    missing = tmp_path / "missing"
    assert f"the data must be files or folders, got {missing}, which does not exist" in refusal({"a": missing})
    (tmp_path / "empty").mkdir()
    assert "a folder of data must hold .json, .jsonl, .md, .parquet, .txt files" in refusal({"a": tmp_path / "empty"})
    file = write_json_lines(tmp_path / "a.jsonl", TEXTS)
    nothing = refusal({"a": file}, column="body")
    assert nothing.startswith("the data must hold text, got none that can be read: ")
    assert "must have a column 'body', got text" in nothing


def test_a_tokenizer_without_special_tokens_is_used_as_it_is_and_the_log_says_so(
    tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    assert special_tokens(tokenizer) == (0, 1)
    without = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)  # type: ignore[no-untyped-call]
    with caplog.at_level(logging.WARNING):
        assert special_tokens(without) == (None, None)
    assert "no token for the beginning of a text" in caplog.text
    assert "no token for the end of a text" in caplog.text
