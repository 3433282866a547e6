"""LongChat's topic retrieval: its wording, exact lengths, and an answer that one topic alone holds."""

import re
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from needles.sample import Sample
from needles.tokenizer import decode
from needles.topic_retrieval import build_topic_samples
from tests.needles.conftest import wrapped

LENGTHS = (*range(1000, 1006), 2048)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, book: str) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "book.txt"
    path.write_text(book)
    return path


def topics(
    tokenizer: PreTrainedTokenizerFast, corpus: Path, *, num: int = 3, length: int = 2000, seed: int = 0
) -> list[Sample]:
    rng = np.random.default_rng(seed)
    return build_topic_samples(tokenizer, corpus, num_samples=num, length=length, rng=rng)


def text_of(tokenizer: PreTrainedTokenizerFast, sample: Sample) -> str:
    return decode(tokenizer, sample.token_ids.tolist())


def test_a_record_of_topics_is_word_for_word_longchats(byte_level: PreTrainedTokenizerFast, corpus: Path) -> None:
    for sample in topics(byte_level, corpus):
        text = text_of(byte_level, sample)
        names = re.findall(
            r"USER: I would like to discuss the topic of ([a-z ]+)\. \n ASSISTANT: Sure, I'd be hap", text
        )
        assert len(names) == 2000 // 640
        assert text.startswith(
            f"Below is a record of our previous conversation on {len(names)} different topics. You are the "
            "ASSISTANT, and I am the USER. At the beginning of each topic, the USER will say 'I would like to discuss "
            "the topic of <TOPIC>'. Memorize each <TOPIC>. At the end of the record, I will ask you to retrieve the "
            "first topic. Now the record start. USER: I would like to discuss the topic of "
        )
        assert text.endswith(
            f"USER: Great, this is the end of our discussion on the topic {names[-1]}, let's talk about the next "
            "topic. Now the record ends. What is the first topic(s) we discussed? Only give me the topic name. Do not "
            "summarize yourself.\n ASSISTANT: The first topic is"
        )
        assert names[0].endswith(f" {sample.answers[0]}")
        assert not any(sample.answers[0] in name for name in names[1:])


def test_records_of_topics_have_exactly_the_length_asked_for(tokenizer: PreTrainedTokenizerFast, corpus: Path) -> None:
    for length in LENGTHS:
        for sample in topics(tokenizer, corpus, num=2, length=length):
            assert len(sample.token_ids) + 50 == sample.length == length


def test_conversations_of_a_record_are_about_equally_long(byte_level: PreTrainedTokenizerFast, corpus: Path) -> None:
    sample = build_topic_samples(
        byte_level, corpus, num_samples=1, length=6000, rng=np.random.default_rng(0), num_topics=5
    )[0]
    talks = text_of(byte_level, sample).split("talk about that with you! ")[1:]
    lengths = [len(talk.partition(" \n USER: Great")[0]) for talk in talks]
    assert len(lengths) == 5
    assert max(lengths) < 1.2 * min(lengths)


def test_ids_are_unique_and_a_seed_gives_the_same_samples(byte_level: PreTrainedTokenizerFast, corpus: Path) -> None:
    one, again, other = topics(byte_level, corpus), topics(byte_level, corpus), topics(byte_level, corpus, seed=1)
    assert [sample.id for sample in one] == [sample.id for sample in again]
    assert len({sample.id for sample in (*one, *other)}) == len(one) + len(other)


def test_chat_models_are_asked_in_their_template(chat: PreTrainedTokenizerFast, corpus: Path) -> None:
    rng = np.random.default_rng(0)
    sample = build_topic_samples(chat, corpus, num_samples=1, length=1400, rng=rng, is_chat=True)[0]
    assert text_of(chat, sample).startswith("<|user|>\nBelow is a record of our previous conversation on 2 different")
    assert text_of(chat, sample).endswith(" Do not summarize yourself.<|end|>\n<|assistant|>\n")
    assert sample.length == 1400


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 0}, r"^num_samples must be at least 1, got 0\. "),
        ({"num_topics": 1}, r"^num_topics must lie between 2 and 50, got 1\. "),
        ({"num_topics": 51}, r"^num_topics must lie between 2 and 50, got 51\. "),
        ({"length": 150}, r"^length must be at least \d+ tokens for the prompt, .*, got 100\. Ask for longer"),
        ({"length": 500_000}, r"^the haystack must fill a document of 499950 tokens, got \d+ with all \d+ characters"),
    ],
)
def test_records_of_topics_that_cannot_be_are_refused(
    byte_level: PreTrainedTokenizerFast, corpus: Path, options: dict[str, object], message: str
) -> None:
    arguments: dict[str, object] = {"num_samples": 1, "length": 2000, "rng": np.random.default_rng(0)} | options
    with pytest.raises(ValueError, match=message):
        build_topic_samples(byte_level, corpus, **arguments)  # type: ignore[arg-type]


def test_a_tokenizer_that_loses_the_topic_is_refused(corpus: Path) -> None:
    raw = RawTokenizer(models.WordLevel({"<unk>": 0, "is": 1}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(
        ValueError, match=r"^the tokenizer must be able to encode 'the \w+ of \w+', got a prompt without "
    ):
        topics(wrapped(raw, unk_token="<unk>"), corpus)
