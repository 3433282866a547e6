"""Needle in a haystack on a grid: exact lengths, a needle of its own for each sample, where it was asked for."""

from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from needles.corpus import Split, read_split
from needles.grid import build_grid
from needles.needle import Needle
from needles.prompts import chat_prompt
from needles.sample import Sample
from needles.tokenizer import decode

LENGTHS = (600, 777)
DEPTHS = (0.0, 0.4, 1.0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, book: str) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "book.txt"
    path.write_text(book)
    return path


def build(tokenizer: PreTrainedTokenizerFast, corpus: Path, seed: int = 0, split: Split = "heldout") -> list[Sample]:
    return build_grid(
        tokenizer,
        corpus,
        lengths=LENGTHS,
        depths=DEPTHS,
        num_per_cell=2,
        rng=np.random.default_rng(seed),
        split=split,
    )


def text_of(tokenizer: PreTrainedTokenizerFast, sample: Sample) -> str:
    return decode(tokenizer, sample.token_ids.tolist())


def test_a_prompt_is_word_for_word_what_ruler_asks(byte_level: PreTrainedTokenizerFast, corpus: Path) -> None:
    for sample in build(byte_level, corpus):
        text, value = text_of(byte_level, sample), sample.answers[0]
        _, _, rest = text.partition("One of the special magic numbers for ")
        key = rest.partition(f" is: {value}.")[0]
        assert text.startswith(
            "A special magic number is hidden within the following text. Make sure to memorize it. "
            "I will quiz you about the number afterwards.\n"
        )
        assert text.endswith(
            f"\nWhat is the special magic number for {key} mentioned in the provided text? "
            f"The special magic number for {key} mentioned in the provided text is"
        )
        assert text.count(value) == 1
        assert len(key.split("-")) == 2


def test_every_cell_has_its_samples_at_their_exact_length(tokenizer: PreTrainedTokenizerFast, corpus: Path) -> None:
    samples = build(tokenizer, corpus)
    assert [(sample.length, sample.depth) for sample in samples] == [
        (length, depth) for length in LENGTHS for depth in DEPTHS for _ in range(2)
    ]
    assert all(len(sample.token_ids) == sample.length - 32 for sample in samples)
    assert all(sample.num_generated == 32 and sample.task == "niah_grid" for sample in samples)
    assert len({sample.id for sample in samples}) == len({sample.answers for sample in samples}) == len(samples)


def test_needles_lie_where_they_were_asked_for(byte_level: PreTrainedTokenizerFast, corpus: Path) -> None:
    for sample in build(byte_level, corpus):
        haystack = text_of(byte_level, sample).partition("afterwards.\n")[2].rpartition("\nWhat is the")[0]
        before = haystack.partition("One of the special")[0]
        needle_length = len("One of the special magic numbers for wandering-strawberry is: 1234567. ")
        # a sentence of the book has at most 150 characters, and the needle goes to the nearer end of one
        assert abs(len(before) - (sample.depth or 0.0) * (len(haystack) - needle_length)) < 100


def test_haystacks_are_stretches_of_the_split(byte_level: PreTrainedTokenizerFast, corpus: Path) -> None:
    own = read_split(corpus, "heldout", num_characters=10**6).text
    samples = build(byte_level, corpus)
    starts = set()
    for sample in samples:
        haystack = text_of(byte_level, sample).partition("afterwards.\n")[2].rpartition("\nWhat is the")[0]
        last = haystack.partition(f" is: {sample.answers[0]}.")[2] if sample.depth == 0 else haystack
        stretch = last.strip()[:60]
        assert stretch in own + own
        starts.add(stretch)
    assert len(starts) == len(samples)


def test_the_same_seed_gives_the_same_samples_and_another_one_others(
    byte_level: PreTrainedTokenizerFast, corpus: Path
) -> None:
    one, again, other = build(byte_level, corpus), build(byte_level, corpus), build(byte_level, corpus, seed=1)
    assert all(np.array_equal(a.token_ids, b.token_ids) for a, b in zip(one, again, strict=True))
    assert not {sample.answers for sample in one} & {sample.answers for sample in other}


def test_a_chat_model_is_asked_in_its_template(chat: PreTrainedTokenizerFast, corpus: Path) -> None:
    samples = build_grid(
        chat,
        corpus,
        lengths=[600],
        depths=[0.5],
        num_per_cell=1,
        rng=np.random.default_rng(0),
        prompt=chat_prompt(chat),
        num_generated=8,
    )
    text = text_of(chat, samples[0])
    assert text.startswith("<|user|>\nA special magic number")
    assert text.partition("?<|end|>\n<|assistant|>\nThe special magic number for ")[2].endswith(" is")
    assert len(samples[0].token_ids) == 592


def test_needles_of_others_are_not_taken(byte_level: PreTrainedTokenizerFast, corpus: Path) -> None:
    taken = [Needle("numerous-kite", sample.answers[0]) for sample in build(byte_level, corpus)]
    samples = build_grid(
        byte_level, corpus, lengths=[600], depths=[0.5], num_per_cell=12, rng=np.random.default_rng(0), taken=taken
    )
    assert not {needle.value for needle in taken} & {sample.answers[0] for sample in samples}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths": []}, r"^a grid must have distinct lengths, got \[\]\. Give each of them once\.$"),
        ({"depths": [0.5, 0.5]}, r"^a grid must have distinct depths, got \[0\.5, 0\.5\]\. "),
        ({"depths": [1.5]}, r"^depth must lie between 0 and 1, got 1\.5\. "),
        ({"num_per_cell": 0}, r"^num_per_cell must be at least 1, got 0\. "),
        ({"num_generated": 0}, r"^num_generated must be at least 1, got 0\. "),
        (
            {"lengths": [60]},
            r"^length must be at least \d+ tokens for the prompt, its needles and their answers, got 28",
        ),
        (
            {"lengths": [500_000]},
            r"^the haystack must fill a document of 499968 tokens, got \d+ with all \d+ characters",
        ),
    ],
)
def test_bad_input_is_refused(
    byte_level: PreTrainedTokenizerFast, corpus: Path, options: dict[str, object], message: str
) -> None:
    arguments: dict[str, object] = {"lengths": [600], "depths": [0.5], "num_per_cell": 1} | options
    with pytest.raises(ValueError, match=message):
        build_grid(byte_level, corpus, rng=np.random.default_rng(0), **arguments)  # type: ignore[arg-type]


def test_a_tokenizer_without_digits_is_refused(digitless: PreTrainedTokenizerFast, corpus: Path) -> None:
    with pytest.raises(ValueError, match=r"^the tokenizer must be able to encode the needle 'One of the special "):
        build(digitless, corpus)
