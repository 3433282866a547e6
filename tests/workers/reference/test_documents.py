"""The documents on which the reference model is fine-tuned."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from needles.corpus import read_split
from needles.prompts import RULER_BASE
from workers.reference.documents import CORPUS, Documents, main
from workers.reference.train import MODEL_FOLDER

TOKENIZER = AutoTokenizer.from_pretrained(MODEL_FOLDER)
TEXT = read_split(CORPUS, "search", num_characters=10**7).text
SENTENCE = re.compile(r"One of the special magic numbers for ([a-z-]+) is: (\d{7})\.")
ANSWER = re.compile(r"The special magic number for ([a-z-]+) mentioned in the provided text is (\d{7})")


def drawn_with(seed: int = 0) -> Documents:
    return Documents(TOKENIZER, TEXT, np.random.default_rng(seed))


@pytest.mark.parametrize("length", [256, 1024])
def test_documents_fill_the_window_with_the_special_tokens_round_them(length: int) -> None:
    documents = drawn_with()

    for kind in ("needle", "text") * 5:
        document = documents.draw(kind, length)
        ids = [TOKENIZER.bos_token_id, *TOKENIZER(document.text, add_special_tokens=False).input_ids]
        assert document.num_tokens == len([*ids, TOKENIZER.eos_token_id])
        # A cut of the text may join two tokens
        assert length - 3 <= document.num_tokens <= length


def test_every_question_has_its_answer_in_the_text() -> None:
    documents = drawn_with()

    counts = set()
    for _ in range(20):
        document = documents.draw("needle", 1024)
        assert document.text.startswith(RULER_BASE.before)
        hidden, asked = SENTENCE.findall(document.text), ANSWER.findall(document.text)
        assert asked
        assert sorted(hidden) == sorted(asked)
        counts.add(len(asked))
    assert len(counts) > 1, "some ask for one needle, some for several"


def test_book_text_is_that_of_the_search_split_alone() -> None:
    documents = drawn_with()
    heldout = read_split(CORPUS, "heldout", num_characters=10**7).text

    for _ in range(20):
        text = documents.draw("text", 1024).text
        assert text in TEXT
        assert text not in heldout


def test_the_same_seed_draws_the_same_documents() -> None:
    first, second, other = (drawn_with(seed).draw("needle", 256) for seed in (3, 3, 4))

    assert first == second
    assert first != other


def test_a_text_that_is_too_short_is_refused() -> None:
    documents = Documents(TOKENIZER, "A few words.", np.random.default_rng(0))

    with pytest.raises(ValueError, match="the search split of the corpus must have more than 254 tokens, got"):
        documents.draw("text", 256)


@pytest.mark.parametrize("length", [1, 30])
def test_a_document_without_room_for_a_needle_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match=f"a document of kind needle must have room .*, got {length} tokens"):
        drawn_with().draw("needle", length)


def test_the_program_writes_json_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "documents.jsonl"
    words = ["documents", "--out", str(out), "--num-short", "4", "--num-long", "2", "--target-length", "512"]
    monkeypatch.setattr(sys, "argv", words)

    main()

    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 6
    assert [line["num_tokens"] > 300 for line in lines] == [False] * 4 + [True] * 2
    assert {line["kind"] for line in lines} == {"needle", "text"}
