"""Scores of a generated text: RULER's two, and one that compares whole words."""

import re
from collections.abc import Sequence

_CONTROL = re.compile(r"[\x00-\x1f]")
_WHOLE_WORD = r"(?<![^\W_]){}(?![^\W_])"


def string_match_all(text: str, answers: Sequence[str]) -> float:
    """Return the share of the answers that appear in a generated text, 0..1, whatever their case.

    Control characters count as line breaks, as in RULER, so an answer broken by one is not found. An answer inside a
    longer word counts.

    Args:
        text: What the model generated, without the prompt.
        answers: What must appear; at least one.

    Raises:
        ValueError: there is no answer.

    Source: NVIDIA/RULER, scripts/eval/synthetic/constants.py and scripts/eval/evaluate.py; all tasks but qa.
    """
    found = _found(text, answers)
    return sum(found) / len(found)


def string_match_part(text: str, answers: Sequence[str]) -> float:
    """Return 1 where at least one of the answers appears in a generated text, whatever its case, and 0 elsewhere.

    Args:
        text: What the model generated, without the prompt.
        answers: Any of which is right; at least one.

    Raises:
        ValueError: there is no answer.

    Source: NVIDIA/RULER, scripts/eval/synthetic/constants.py and scripts/eval/evaluate.py; the qa tasks.
    """
    return float(any(_found(text, answers)))


def whole_word_match(text: str, answers: Sequence[str]) -> float:
    """Return the share of the answers that appear as whole words in a generated text, 0..1, whatever their case.

    Neither a letter nor a digit may stand right before or behind an answer: "tea" is not in "instead", and 2345 is not
    in 12345. An underscore may, as Markdown has them round a word.

    LongChat lets another model judge the topics, and takes the last number of an answer about a line; a base model goes
    on with lines of its own behind its answer, so here any place will do.

    Args:
        text: What the model generated, without the prompt.
        answers: What must appear; at least one.

    Raises:
        ValueError: there is no answer.

    Source: our own; for LongChat's see DachengLi1/LongChat, longeval/utils.py.
    """
    _check_answers(answers)
    found = [re.search(_WHOLE_WORD.format(re.escape(answer)), text, re.IGNORECASE) for answer in answers]
    return sum(match is not None for match in found) / len(found)


def _found(text: str, answers: Sequence[str]) -> list[bool]:
    _check_answers(answers)
    generated = _CONTROL.sub("\n", text).lower()
    return [answer.lower() in generated for answer in answers]


def _check_answers(answers: Sequence[str]) -> None:
    if isinstance(answers, str) or not answers:
        raise ValueError(f"answers must be a list with at least one string, got {answers!r}. Give the answers.")
