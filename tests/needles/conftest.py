"""A little book, and tokenizers that treat text in different ways."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Regex, decoders, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as RawTokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

REFERENCE = Path(__file__).parents[2] / "workers/reference"
VOCABULARY = """
the a and of to in harbour lantern whisper crooked morning letter captain garden sister bridge window remember
carried answered slowly beneath golden quarrel river thunder almost before under stranger kitchen velvet is one
special magic numbers for what mentioned provided text hidden within following memorize quiz about afterwards
"""
CHARACTERS = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ . , : ; ! ? - \n\n"

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def write_book(num_characters: int, seed: int = 0) -> str:
    """Return sentences of random words, in lines and paragraphs, that never repeat."""
    rng = np.random.default_rng(seed)
    sentences: list[str] = []
    length = 0
    words = VOCABULARY.split()
    while length < num_characters:
        chosen = rng.choice(words, size=rng.integers(4, 18))
        ending = rng.choice([". ", "? ", "! ", ".\n", ".\n\n"])
        sentences.append(" ".join(chosen).capitalize() + ending)
        length += len(sentences[-1])
    return "".join(sentences)


def needle_lines(num: int) -> list[str]:
    """Return sentences with the wording and the digits of needles."""
    rng = np.random.default_rng(1)
    return [f"One of the special magic numbers for key-word is: {value}." for value in rng.integers(10**6, 10**7, num)]


@pytest.fixture(scope="session")
def book() -> str:
    return write_book(120_000)


def byte_level_bpe() -> PreTrainedTokenizerFast:
    """A byte-level BPE in which every digit is a token, without special tokens."""
    raw = RawTokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    raw.train_from_iterator([write_book(20_000, seed=1), *needle_lines(50)], trainer)
    return wrapped(raw)


def merging_bpe() -> PreTrainedTokenizerFast:
    """A byte-level BPE that merges across words: `is` or a colon, a space and digits can be a single token."""
    raw = RawTokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"(is|:)? ?\d+"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    endings = [f" mentioned in the provided text is {line[-8:-1]}" for line in needle_lines(3_000)]
    raw.train_from_iterator([*endings, *needle_lines(200), *write_book(20_000, seed=1).splitlines()], trainer)
    return wrapped(raw)


def metaspace_unigram() -> PreTrainedTokenizerFast:
    """A Unigram that marks spaces as SentencePiece does and begins with <s>."""
    raw = RawTokenizer(models.Unigram())
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=["<unk>", "<s>"], unk_token="<unk>", show_progress=False
    )
    raw.train_from_iterator([write_book(20_000, seed=1), *needle_lines(100), CHARACTERS], trainer)
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return wrapped(raw, bos_token="<s>", unk_token="<unk>")


def eos_bpe() -> PreTrainedTokenizerFast:
    """The byte-level BPE, with <s> before and </s> after every text."""
    tokenizer = byte_level_bpe()
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ids)
    return tokenizer


def chat_bpe() -> PreTrainedTokenizerFast:
    """The byte-level BPE, with a chat template and its special tokens."""
    tokenizer = byte_level_bpe()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>", "<|end|>"]})
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def digitless_bpe() -> PreTrainedTokenizerFast:
    """A BPE over letters that knows no digit."""
    raw = RawTokenizer(models.BPE(unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>"], show_progress=False)
    raw.train_from_iterator([write_book(20_000, seed=1), CHARACTERS], trainer)
    return wrapped(raw, unk_token="<unk>")


def line_bpe() -> PreTrainedTokenizerFast:
    """A byte-level BPE that keeps a line break with the digit before it."""
    raw = RawTokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d\n?"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    raw.train_from_iterator([f"{digit}\n{digit}" for digit in range(10)] * 5, trainer)
    return wrapped(raw)


def wrapped(raw: RawTokenizer, **special_tokens: str) -> PreTrainedTokenizerFast:
    """Return the tokenizer as transformers' class, which tidies spaces on decoding unless it is told not to."""
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=raw, clean_up_tokenization_spaces=True, **special_tokens
    )


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte-level": byte_level_bpe,
    "merging": merging_bpe,
    "metaspace": metaspace_unigram,
    "eos": eos_bpe,
    "chat": chat_bpe,
}


@pytest.fixture(scope="session", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    """Each tokenizer that covers the needles."""
    return TOKENIZERS[request.param]()


@pytest.fixture(scope="session")
def byte_level() -> PreTrainedTokenizerFast:
    return byte_level_bpe()


@pytest.fixture(scope="session")
def merging() -> PreTrainedTokenizerFast:
    return merging_bpe()


@pytest.fixture(scope="session")
def chat() -> PreTrainedTokenizerFast:
    return chat_bpe()


@pytest.fixture(scope="session")
def digitless() -> PreTrainedTokenizerFast:
    return digitless_bpe()


@pytest.fixture(scope="session")
def eos() -> PreTrainedTokenizerFast:
    return eos_bpe()


@pytest.fixture(scope="session")
def lines() -> PreTrainedTokenizerFast:
    return line_bpe()


@pytest.fixture(scope="session")
def reference() -> PreTrainedTokenizerFast:
    """The tokenizer of the model that is shipped."""
    tokenizer = AutoTokenizer.from_pretrained(REFERENCE / "model")
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    return tokenizer
