"""Finds the needle and the answer in finished token ids."""

from needles.needle import Needle
from needles.tokenizer import Tokenizer, decode, encode

_MAX_ANSWER_TOKENS = 32


def check_needle(tokenizer: Tokenizer, token_ids: list[int], needle: Needle) -> None:
    """Refuse ids from which the needle's sentence cannot be read whole.

    White space is not compared: some tokenizers change it.

    Raises:
        ValueError: the sentence is not in the decoded text.
    """
    sentence = needle.sentence()
    text = decode(tokenizer, token_ids)
    if _squeezed(sentence) not in _squeezed(text):
        read_back = decode(tokenizer, encode(tokenizer, sentence, add_special_tokens=False))
        raise ValueError(
            f"the tokenizer must be able to encode the needle {sentence!r}, got {read_back!r} back. "
            "Use a model whose tokenizer covers it."
        )


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


def _squeezed(text: str) -> str:
    return "".join(text.split())
