from copy import deepcopy

import pytest
from transformers import PreTrainedTokenizerFast

from needles.needle import Needle
from needles.prompts import RULER_BASE, chat_prompt

NEEDLE = Needle("numerous-kite", "6716097")


def test_the_base_prompt_is_the_one_in_the_paper() -> None:
    assert RULER_BASE.write("<book text>", NEEDLE) == (
        "A special magic number is hidden within the following text. Make sure to memorize it. "
        "I will quiz you about the number afterwards.\n<book text>\n"
        "What is the special magic number for numerous-kite mentioned in the provided text? "
        "The special magic number for numerous-kite mentioned in the provided text is 6716097"
    )


def test_braces_in_the_haystack_are_left_alone() -> None:
    assert "a {key} and {0}" in RULER_BASE.write("a {key} and {0}", NEEDLE)


def test_the_chat_prompt_begins_the_answer_after_the_assistants_header(chat: PreTrainedTokenizerFast) -> None:
    assert chat_prompt(chat).write("<book text>", NEEDLE) == (
        "<|user|>\nA special magic number is hidden within the following text. Make sure to memorize it. "
        "I will quiz you about the number afterwards.\n<book text>\n"
        "What is the special magic number for numerous-kite mentioned in the provided text?<|end|>\n<|assistant|>\n"
        "The special magic number for numerous-kite mentioned in the provided text is 6716097"
    )


def test_a_template_that_ends_without_a_space_gets_one(chat: PreTrainedTokenizerFast) -> None:
    prompt = chat_prompt(with_template(chat, "[INST] {{ messages[0]['content'] }} [/INST]"))
    assert "provided text? [/INST] The special magic number" in prompt.write("<book text>", NEEDLE)


def test_a_tokenizer_without_a_chat_template_is_refused(byte_level: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match=r"needs a tokenizer with a chat template, got none\. Use the base prompt\."):
        chat_prompt(byte_level)


def test_a_template_without_the_users_message_is_refused(chat: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="must repeat the user's message, got a text without it"):
        chat_prompt(with_template(chat, "<|assistant|>"))


def with_template(tokenizer: PreTrainedTokenizerFast, template: str) -> PreTrainedTokenizerFast:
    other = deepcopy(tokenizer)
    other.chat_template = template
    return other
