"""Finds needles and answers in finished token ids."""

from collections.abc import Sequence

from needles.needle import Needle
from needles.tokenizer import Tokenizer, decode, encode

_MAX_ANSWER_TOKENS = 32
_MAX_QUESTION_TOKENS = 512  # its 190 characters, should each be two tokens, and more


def check_needles(tokenizer: Tokenizer, token_ids: list[int], needles: Sequence[Needle]) -> None:
    """Refuse ids from which a needle's sentence cannot be read whole.

    White space is not compared: some tokenizers change it.

    Raises:
        ValueError: a sentence is not in the decoded text.
    """
    text = _squeezed(decode(tokenizer, token_ids))
    for needle in needles:
        _check_needle(tokenizer, text, needle)


def find_answers(tokenizer: Tokenizer, token_ids: list[int], needles: Sequence[Needle]) -> list[tuple[int, int]]:
    """Return where each value is in ids that end with questions and answers.

    A token that holds a value's first or last digit together with what stands round it belongs to the answer.

    Args:
        tokenizer: The model's.
        token_ids: The whole document.
        needles: What is asked for, in the order of the questions; at least one.

    Returns:
        The first token's index and the last one's plus 1, for each needle; ascending and disjoint.

    Raises:
        ValueError: an answer is not in its place.
    """
    spans = [(find_answer(tokenizer, token_ids, needles[-1]), len(token_ids))]
    for needle in needles[-2::-1]:
        spans.insert(0, _find_earlier_answer(tokenizer, token_ids[: spans[0][0]], needle))
    return spans


def find_answer(tokenizer: Tokenizer, token_ids: list[int], needle: Needle) -> int:
    """Return the index of the last token from which on the ids hold the whole value, at their end.

    A token that holds the value's first digit together with what stands before it belongs to the answer.

    Raises:
        ValueError: the last 32 tokens do not end with the value.
    """
    for start in range(len(token_ids) - 1, max(len(token_ids) - 1 - _MAX_ANSWER_TOKENS, -1), -1):
        if decode(tokenizer, token_ids[start:]).endswith(needle.value):
            return start
    raise ValueError(
        f"the document must end with the answer {needle.value}, "
        f"got {decode(tokenizer, token_ids[-_MAX_ANSWER_TOKENS:])!r}. Use a model whose tokenizer covers it."
    )


def _check_needle(tokenizer: Tokenizer, squeezed_text: str, needle: Needle) -> None:
    sentence = needle.sentence()
    if _squeezed(sentence) not in squeezed_text:
        read_back = decode(tokenizer, encode(tokenizer, sentence, add_special_tokens=False))
        raise ValueError(
            f"the tokenizer must be able to encode the needle {sentence!r}, got {read_back!r} back. "
            "Use a model whose tokenizer covers it."
        )


def _find_earlier_answer(tokenizer: Tokenizer, token_ids: list[int], needle: Needle) -> tuple[int, int]:
    """Return the shortest stretch that holds the value and ends last, in ids that end with the next question."""
    end = len(token_ids)
    reach = _MAX_ANSWER_TOKENS + _MAX_QUESTION_TOKENS
    for start in range(end - 1, max(end - 1 - reach, -1), -1):
        if needle.value in decode(tokenizer, token_ids[start:]):
            return start, next(
                stop for stop in range(start + 1, end + 1) if needle.value in decode(tokenizer, token_ids[start:stop])
            )
    raise ValueError(
        f"the document must hold the answer {needle.value} before the next question, got none in the {reach} tokens "
        "before the next answer. Use a model whose tokenizer covers it."
    )


def _squeezed(text: str) -> str:
    return "".join(text.split())
