"""What is asked of a tokenizer, and how documents use one."""

from collections.abc import Mapping, Sequence
from typing import Protocol


class Tokenizer(Protocol):
    """The part of a transformers tokenizer, fast or slow, that documents need."""

    @property
    def all_special_ids(self) -> list[int]:
        """Ids of special tokens."""

    def __call__(self, text: str, *, add_special_tokens: bool, verbose: bool) -> Mapping[str, Sequence[int]]:
        """Tokenise; the ids are under `input_ids`."""

    def decode(
        self, token_ids: list[int], skip_special_tokens: bool = False, *, clean_up_tokenization_spaces: bool
    ) -> str | list[str]:
        """Return the text of ids."""

    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool
    ) -> object:
        """Return the text of a conversation, up to where the answer begins."""


def encode(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
    """Return the ids of a text as the model would read it, without special tokens that close it.

    A document ends with its answer, so what some tokenizers append, an end-of-sequence token, is dropped.
    """
    ids = list(tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)["input_ids"])
    special = set(tokenizer.all_special_ids)
    while ids and ids[-1] in special:
        ids.pop()
    return ids


def decode(tokenizer: Tokenizer, token_ids: list[int]) -> str:
    """Return the text of ids, special tokens included, spaces as they are."""
    text = tokenizer.decode(token_ids, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text
