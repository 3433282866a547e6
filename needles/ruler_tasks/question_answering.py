"""RULER's question answering: SQuAD and HotpotQA with paragraphs of other questions round those that answer.

Source: NVIDIA/RULER, scripts/data/synthetic/qa.py and constants.py; arXiv:2404.06654, section 3.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from needles.ruler_tasks.puzzle import Message, Puzzle

_TEMPLATE = (
    "Answer the question based on the given documents. Only give me the answer and do not output any other words.\n\n"
    "The following are given documents.\n\n{context}\n\n"
    "Answer the question based on the given documents. Only give me the answer and do not output any other words.\n\n"
    "Question: {query}"
)
_PREFIX = " Answer:"

# Question, answers, texts that hold the answer, texts of the same article
_Found = Iterator[tuple[str, tuple[str, ...], list[str], list[str]]]


class Question(NamedTuple):
    """A question, and which documents belong to it."""

    query: str

    answers: tuple[str, ...]
    """Any of which is right; each once."""

    gold: tuple[int, ...]
    """Documents that must be there; they hold the answer."""

    related: tuple[int, ...] = ()
    """Documents of the same article, which come before others."""


class QuestionSet(NamedTuple):
    """All of a file."""

    questions: tuple[Question, ...]

    documents: tuple[str, ...]
    """Each once, sorted."""

    name: str
    """What errors call it."""


def read_squad(path: str | Path) -> QuestionSet:
    """Return the answerable questions of a SQuAD file, version 1.1 or 2.0, in the file's order.

    Raises:
        ValueError: the file is missing, not JSON, not in SQuAD's form, or holds no question with an answer.
    """
    return _read(path, "SQuAD", _squad)


def read_hotpotqa(path: str | Path) -> QuestionSet:
    """Return the questions of a HotpotQA file, distractor setting, in the file's order.

    Raises:
        ValueError: the file is missing, not JSON, not in HotpotQA's form, or holds no question.
    """
    return _read(path, "HotpotQA", _hotpotqa)


def answering_puzzle(number: int, rng: np.random.Generator, *, questions: QuestionSet) -> Puzzle:
    """Return the question of a number; its size is the characters of the documents that do not belong to it.

    Documents of the same article come first, then any others, all in random order; one of them may be cut off for the
    exact length. Those that belong to the question are whole.

    Args:
        number: Which question, from 0; in RULER too the samples are the file's first questions.
        rng: Draws documents and their order.
        questions: The file.
    """
    question = questions.questions[number]
    others = np.setdiff1d(np.arange(len(questions.documents)), (*question.gold, *question.related))
    further = [*rng.permutation(question.related).astype(int), *rng.permutation(others)]
    texts = [questions.documents[index] for index in further]
    order = rng.random(len(question.gold) + len(texts))

    def write(size: int, ending: str) -> Message:
        shown = [*(questions.documents[index] for index in question.gold), *_beginning(texts, size)]
        shown[-1] += ending  # never one that belongs to the question, where others are shown
        shuffled = (shown[index] for index in np.argsort(order[: len(shown)]))
        context = "\n\n".join(f"Document {place}:\n{text}" for place, text in enumerate(shuffled, start=1))
        return Message(_TEMPLATE.format(context=context, query=question.query))

    return Puzzle(
        write=write,
        smallest=0,
        largest=sum(map(len, texts)),
        answer_prefix=_PREFIX,
        answers=question.answers,
        evidence=(),  # a tokenizer need not know every sign of an encyclopedia
        material=f"the documents of {questions.name}",
    )


def _beginning(texts: list[str], num_characters: int) -> Iterator[str]:
    for text in texts:
        if num_characters <= 0:
            return
        yield text[:num_characters]
        num_characters -= len(text)


def _read(path: str | Path, form: str, parse: Callable[[object], _Found]) -> QuestionSet:
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        found = list(parse(data))
    except OSError as error:
        raise ValueError(f"the {form} file must be readable, got {path}: {error.strerror}. Check the path.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be UTF-8 text, got a wrong byte at offset {error.start}. Save it so.") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} must be JSON, got: {error.msg} in line {error.lineno}. Download it again.") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} must be in the form of {form}'s own files, got other content ({type(error).__name__}: {error}). "
            f"Give a file from {form}."
        ) from error
    if not found:
        raise ValueError(f"{path} must hold questions with answers, got none. Give a file from {form}.")
    documents = sorted({text for _, _, gold, related in found for text in (*gold, *related)})
    index = {text: number for number, text in enumerate(documents)}
    questions = (
        Question(query, answers, _indices(index, gold), _indices(index, [text for text in related if text not in gold]))
        for query, answers, gold, related in found
    )
    return QuestionSet(tuple(questions), tuple(documents), str(path))


def _indices(index: Mapping[str, int], texts: list[str]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(index[text] for text in texts))


def _squad(data: object) -> _Found:
    for article in _items(data, "data"):
        paragraphs = list(_items(article, "paragraphs"))
        contexts = [_string(_field(paragraph, "context")) for paragraph in paragraphs]
        for paragraph, context in zip(paragraphs, contexts, strict=True):
            for question in _items(paragraph, "qas"):
                answers = [_string(_field(answer, "text")) for answer in _items(question, "answers")]
                if answers:  # version 2.0 has questions without
                    yield _string(_field(question, "question")), tuple(dict.fromkeys(answers)), [context], contexts


def _hotpotqa(data: object) -> _Found:
    for question in _list(data):
        paragraphs = [
            f"{_string(title)}\n{''.join(map(_string, _list(sentences)))}"
            for title, sentences in map(_list, _items(question, "context"))
        ]
        yield _string(_field(question, "question")), (_string(_field(question, "answer")),), paragraphs, []


def _field(record: object, name: str) -> object:
    if not isinstance(record, dict):
        raise TypeError(f"an object with {name!r} was expected, not {type(record).__name__}")
    return record[name]


def _items(record: object, name: str) -> list[object]:
    return _list(_field(record, name))


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise TypeError(f"a list was expected, not {type(value).__name__}")
    return value


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a string was expected, not {type(value).__name__}")
    return value
