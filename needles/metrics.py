"""RULER's two scores of a generated text."""

import re
from collections.abc import Sequence

_CONTROL = re.compile(r"[\x00-\x1f]")


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


def _found(text: str, answers: Sequence[str]) -> list[bool]:
    if isinstance(answers, str) or not answers:
        raise ValueError(f"answers must be a list with at least one string, got {answers!r}. Give the answers.")
    generated = _CONTROL.sub("\n", text).lower()
    return [answer.lower() in generated for answer in answers]
