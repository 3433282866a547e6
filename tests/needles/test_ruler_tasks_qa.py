"""Question answering on little files in the form of SQuAD's and HotpotQA's own."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from needles.ruler import build_samples
from needles.ruler_tasks.question_answering import read_hotpotqa, read_squad
from needles.sample import Sample
from needles.tokenizer import decode

ASK = "Answer the question based on the given documents. Only give me the answer and do not output any other words."


def paragraph(article: int, number: int) -> str:
    words = " ".join(f"word{article}x{number}x{place}" for place in range(12))
    return f"In article {article}, paragraph {number}, the answer is city{article}y{number}z. {words}."


def squad() -> dict[str, Any]:
    """Eight articles with five paragraphs each; two questions a paragraph, the second without an answer."""
    return {
        "version": "v2.0",
        "data": [
            {
                "title": f"Article {article}",
                "paragraphs": [
                    {
                        "context": paragraph(article, number),
                        "qas": [
                            {
                                "question": f"Which city has paragraph {number} of article {article}?",
                                "id": f"{article}-{number}",
                                "is_impossible": False,
                                "answers": [
                                    {"text": f"city{article}y{number}z", "answer_start": 3},
                                    {"text": f"city{article}y{number}z", "answer_start": 3},
                                    {"text": f"the city{article}y{number}z", "answer_start": 3},
                                ],
                            },
                            {"question": "Nobody knows?", "id": "n", "is_impossible": True, "answers": []},
                        ],
                    }
                    for number in range(5)
                ],
            }
            for article in range(8)
        ],
    }


def hotpotqa() -> list[dict[str, Any]]:
    """Six questions with four paragraphs each, of which they share one."""
    shared = ["Shared", ["A paragraph of every question.", " It has two sentences."]]
    return [
        {
            "_id": str(number),
            "question": f"What links A{number} and B{number}?",
            "answer": "yes" if number == 5 else f"link{number}",
            "supporting_facts": [[f"A{number}", 0], [f"B{number}", 0]],
            "context": [
                [f"A{number}", [f"A{number} is old.", f" It has link{number}."]],
                [f"B{number}", [f"B{number} is new.", f" It has link{number} too."]],
                [f"C{number}", [f"C{number} is something else."]],
                shared,
            ],
        }
        for number in range(6)
    ]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("qa")
    (folder / "squad.json").write_text(json.dumps(squad()))
    (folder / "hotpotqa.json").write_text(json.dumps(hotpotqa()))
    return {"squad": folder / "squad.json", "hotpotqa": folder / "hotpotqa.json"}


def build(
    tokenizer: PreTrainedTokenizerFast, task: str, files: dict[str, Path], length: int, num: int = 4
) -> list[tuple[Sample, str]]:
    rng = np.random.default_rng(0)
    samples = build_samples(task, tokenizer, num_samples=num, length=length, rng=rng, **files)  # type: ignore[arg-type]
    return [(sample, decode(tokenizer, sample.token_ids.tolist()).removeprefix("<s>")) for sample in samples]


def documents_of(text: str, query: str) -> list[str]:
    """Return the documents of a prompt, whose frame is checked word for word."""
    before = f"{ASK}\n\nThe following are given documents.\n\n"
    after = f"\n\n{ASK}\n\nQuestion: {query} Answer:"
    assert text.startswith(before)
    assert text.endswith(after)
    parts = text.removeprefix(before).removesuffix(after).split("\n\n")
    for number, part in enumerate(parts, start=1):
        assert part.startswith(f"Document {number}:\n")
    return [part.partition(":\n")[2] for part in parts]


@pytest.mark.parametrize("length", [1_500, 1_501, 1_502, 2_500])
def test_squad_s_questions_stand_among_documents_of_their_article_and_others(
    byte_level: PreTrainedTokenizerFast, files: dict[str, Path], length: int
) -> None:
    for number, (sample, text) in enumerate(build(byte_level, "qa_1", files, length)):
        assert sample.answers == (f"city0y{number}z", f"the city0y{number}z")
        assert sample.num_generated == 32
        documents = documents_of(text, f"Which city has paragraph {number} of article 0?")
        assert paragraph(0, number) in documents
        everything = {paragraph(article, place) for article in range(8) for place in range(5)}
        partial = [document for document in documents if document not in everything]
        assert len(partial) <= 1
        assert all(any(whole.startswith(re.sub(r"( ?\.)+$", "", cut)) for whole in everything) for cut in partial)
        assert len(set(documents)) == len(documents)
        others = [document for document in documents if "In article 0" not in document]
        if others:  # only when the article's own are all there
            assert sum("In article 0" in document for document in documents) == 5


def test_hotpotqa_s_questions_keep_all_of_their_own_paragraphs(
    byte_level: PreTrainedTokenizerFast, files: dict[str, Path]
) -> None:
    for number, (sample, text) in enumerate(build(byte_level, "qa_2", files, 700)):
        assert sample.answers == (f"link{number}",)
        documents = documents_of(text, f"What links A{number} and B{number}?")
        assert f"A{number}\nA{number} is old. It has link{number}." in documents
        assert f"B{number}\nB{number} is new. It has link{number} too." in documents
        assert f"C{number}\nC{number} is something else." in documents
        assert documents.count("Shared\nA paragraph of every question. It has two sentences.") == 1
        assert len(documents) > 5


def test_the_document_that_answers_lies_anywhere(byte_level: PreTrainedTokenizerFast, files: dict[str, Path]) -> None:
    places = []
    for number, (_, text) in enumerate(build(byte_level, "qa_1", files, 2_500, num=5)):
        documents = documents_of(text, f"Which city has paragraph {number} of article 0?")
        places.append(documents.index(paragraph(0, number)))
    assert len(set(places)) > 2


def test_files_are_read_in_their_order_without_questions_that_have_no_answer(files: dict[str, Path]) -> None:
    found = read_squad(files["squad"])
    assert len(found.questions) == len(found.documents) == 40
    assert found.questions[7].query == "Which city has paragraph 2 of article 1?"
    assert [found.documents[index] for index in found.questions[7].gold] == [paragraph(1, 2)]
    related = {found.documents[index] for index in found.questions[7].related}
    assert related == {paragraph(1, number) for number in (0, 1, 3, 4)}
    found = read_hotpotqa(files["hotpotqa"])
    assert len(found.questions) == 6
    assert len(found.documents) == 3 * 6 + 1
    assert found.questions[5].answers == ("yes",)
    assert len(found.questions[5].gold) == 4


def test_files_in_another_form_are_refused(tmp_path: Path, files: dict[str, Path]) -> None:
    path = tmp_path / "file.json"
    with pytest.raises(ValueError, match=r"^the SQuAD file must be readable, got .*file\.json: No such file"):
        read_squad(path)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"file\.json must be JSON, got: .* in line 1\. Download it again\.$"):
        read_squad(path)
    path.write_bytes(b'{"data": "\xff"}')
    with pytest.raises(ValueError, match=r"file\.json must be UTF-8 text, got a wrong byte at offset 10\. Save it so"):
        read_hotpotqa(path)
    with pytest.raises(ValueError, match=r"must be in the form of SQuAD's own files, .*TypeError.* Give a file from"):
        read_squad(files["hotpotqa"])
    with pytest.raises(ValueError, match=r"must be in the form of HotpotQA's own files, .* Give a file from HotpotQA"):
        read_hotpotqa(files["squad"])
    for content in ('{"data": 3}', '{"data": [{"title": 1}]}', '{"data": [{"paragraphs": [{"context": 1}]}]}'):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"must be in the form of SQuAD's own files, got other content \("):
            read_squad(path)
    path.write_text('{"data": []}')
    with pytest.raises(ValueError, match=r"must hold questions with answers, got none\. Give a file from SQuAD\.$"):
        read_squad(path)


def test_more_samples_than_questions_are_refused(byte_level: PreTrainedTokenizerFast, files: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=r"^num_samples of qa_2 must be at most 6, the questions in .*, got 7\. Ask"):
        build(byte_level, "qa_2", files, 700, num=7)


def test_documents_that_do_not_fill_the_length_are_refused(
    byte_level: PreTrainedTokenizerFast, files: dict[str, Path]
) -> None:
    message = r"^the documents of .*hotpotqa\.json must fill the prompt of qa_2 with 9968 tokens, got \d+ with all of"
    with pytest.raises(ValueError, match=message):
        build(byte_level, "qa_2", files, 10_000)
