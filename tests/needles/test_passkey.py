"""Passkey prompts in the papers' words, at exact lengths, and the effective window by its definition."""

import re

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from needles.passkey import build_passkey_samples, build_window_samples, effective_window, window_lengths
from needles.sample import Sample
from needles.tokenizer import decode

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
TASK = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    "I will quiz you about the important information there."
)


def build(tokenizer: PreTrainedTokenizerFast, *, num: int = 10, length: int = 700, seed: int = 0) -> list[Sample]:
    return build_passkey_samples(tokenizer, num_samples=num, length=length, rng=np.random.default_rng(seed))


def text_of(tokenizer: PreTrainedTokenizerFast, sample: Sample) -> str:
    return decode(tokenizer, sample.token_ids.tolist())


def test_a_prompt_has_the_lines_of_the_published_one(byte_level: PreTrainedTokenizerFast) -> None:
    filler = " ".join([NOISE] * 200)
    for sample in build(byte_level):
        key = sample.answers[0]
        task, before, passkey, after, question = text_of(byte_level, sample).split("\n")
        assert task == TASK
        assert passkey == f"The pass key is {key}. Remember it. {key} is the pass key."
        assert question == "What is the pass key? The pass key is"
        assert before.endswith(".")
        assert filler.startswith(before)
        assert filler.startswith(after.rstrip(" ."))
        assert 10_000 <= int(key) <= 99_999
        assert sample.depth == pytest.approx(len(before) / (len(before) + len(after)), abs=0.005)


def test_prompts_have_exactly_the_length_asked_for(tokenizer: PreTrainedTokenizerFast) -> None:
    for length in [*range(300, 306), 512, 1023, 2048]:
        for sample in build(tokenizer, num=3, length=length):
            assert len(sample.token_ids) + sample.num_generated == sample.length == length
            assert f"The pass key is {sample.answers[0]}." in text_of(tokenizer, sample)


def test_depths_are_spread_over_the_whole_filler(byte_level: PreTrainedTokenizerFast) -> None:
    samples = build(byte_level, num=20, length=2048)
    assert len({sample.id for sample in samples}) == len({sample.answers for sample in samples}) == 20
    depths = sorted(sample.depth for sample in samples if sample.depth is not None)
    # each lies in its own twentieth, or half a sentence of a few thousand characters beside it
    assert np.abs(np.array(depths) - (np.arange(20) + 0.5) / 20).max() < 0.5 / 20 + 0.01


@pytest.mark.parametrize(("depth", "num_before"), [(0.0, 0), (1.0, 1)])
def test_a_depth_that_is_asked_for_is_met(byte_level: PreTrainedTokenizerFast, depth: float, num_before: int) -> None:
    for sample in build_passkey_samples(
        byte_level, num_samples=3, length=512, rng=np.random.default_rng(0), depth=depth
    ):
        before, _, after = text_of(byte_level, sample).partition("The pass key is ")
        assert (before.count("grass") > 0) == num_before
        assert (after.count("grass") > 0) == (1 - num_before)
        assert sample.depth == pytest.approx(depth, abs=0.02)


def test_the_same_seed_gives_the_same_samples(byte_level: PreTrainedTokenizerFast) -> None:
    one, again, other = build(byte_level), build(byte_level), build(byte_level, seed=1)
    assert [sample.id for sample in one] == [sample.id for sample in again]
    assert all(np.array_equal(a.token_ids, b.token_ids) for a, b in zip(one, again, strict=True))
    assert [sample.answers for sample in one] != [sample.answers for sample in other]


def test_a_chat_model_is_asked_in_its_template(chat: PreTrainedTokenizerFast) -> None:
    samples = build_passkey_samples(chat, num_samples=2, length=400, rng=np.random.default_rng(0), is_chat=True)
    for sample in samples:
        text = text_of(chat, sample)
        assert text.startswith(f"<|user|>\n{TASK}\n")
        assert text.endswith("\nWhat is the pass key?<|end|>\n<|assistant|>\nThe pass key is")
        assert len(sample.token_ids) == 400 - sample.num_generated


@pytest.mark.parametrize(
    ("success", "expected"),
    [
        ({2048: 1.0, 4096: 1.0, 6144: 0.5, 8192: 0.2}, 8192),
        ({8192: 0.9, 2048: 1.0, 4096: 0.19, 6144: 1.0}, 2048),  # what follows a failure does not count
        ({2048: 0.1, 4096: 1.0}, 0),
        ({2048: 0.2}, 2048),  # at least 20 %
    ],
)
def test_the_effective_window_ends_before_the_first_length_that_fails(success: dict[int, float], expected: int) -> None:
    assert effective_window(success) == expected


def test_windows_are_looked_for_at_32_even_lengths() -> None:
    lengths = window_lengths(32768)
    assert lengths == list(range(1024, 32769, 1024))
    assert len(lengths) == 32
    assert window_lengths(1000, num=3) == [333, 667, 1000]


def test_passkeys_of_the_window_lie_at_the_beginning_of_prompts_of_every_length_that_has_room(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    samples, left_out = build_window_samples(tokenizer, num_samples=2, target_length=3200, rng=np.random.default_rng(0))
    lengths = sorted({sample.length for sample in samples})
    assert left_out + lengths == list(range(100, 3201, 100))
    assert len(samples) == 2 * len(lengths)
    for sample in samples:
        assert len(sample.token_ids) + sample.num_generated == sample.length
        assert (sample.task, sample.depth) == ("passkey_window", 0.0)
        assert f" The pass key is {sample.answers[0]}." in text_of(tokenizer, sample).replace("\n", " ")
        assert "grass" not in text_of(tokenizer, sample).partition("The pass key is")[0]
    ids = {(sample.length, sample.id) for sample in samples}
    assert len(ids) == len(samples)
    again = build_window_samples(tokenizer, num_samples=2, target_length=3200, rng=np.random.default_rng(0)).samples
    assert [sample.id for sample in again] == [sample.id for sample in samples]


def test_a_window_in_which_no_length_has_room_is_refused(byte_level: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match=r"^length must be at least \d+ tokens for the prompt, .*, got 40\. Ask for"):
        build_window_samples(byte_level, num_samples=2, target_length=64, rng=np.random.default_rng(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 0}, r"^num_samples must be at least 1, got 0\. "),
        ({"num_samples": 90_001}, r"^num_samples must be at most 90000, the passkeys, got 90001\. Ask for fewer\.$"),
        ({"num_generated": 0}, r"^num_generated must be at least 1, got 0\. "),
        ({"depth": 1.5}, r"^depth must lie between 0 and 1, got 1\.5\. "),
        ({"length": 60}, r"^length must be at least \d+ tokens for the prompt, .*, got 36\. Ask for longer"),
        (
            {"is_chat": True},
            r"^a chat prompt needs a tokenizer with a chat template, got none\. Use the base prompt\.$",
        ),
    ],
)
def test_bad_input_is_refused(byte_level: PreTrainedTokenizerFast, options: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"num_samples": 1, "length": 400, "rng": np.random.default_rng(0)} | options
    with pytest.raises(ValueError, match=message):
        build_passkey_samples(byte_level, **arguments)  # type: ignore[arg-type]


def test_a_tokenizer_or_template_that_loses_the_passkey_is_refused(
    digitless: PreTrainedTokenizerFast, chat: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"^the tokenizer must be able to encode the passkey \d{5}, got a prompt with"):
        build(digitless)
    monkeypatch.setattr(chat, "chat_template", "nothing")
    with pytest.raises(ValueError, match=r"^the chat template must repeat the user's message, got a text without it"):
        build_passkey_samples(chat, num_samples=1, length=400, rng=np.random.default_rng(0), is_chat=True)


@pytest.mark.parametrize(
    ("success", "message"),
    [
        ({}, "the effective window must be looked for at some length, got none. Measure one."),
        ({8: 1.5}, "success must lie between 0 and 1, got 1.5 at 8 tokens. Give a share."),
    ],
)
def test_success_that_is_none_is_refused(success: dict[int, float], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        effective_window(success)


def test_more_lengths_than_tokens_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^num must lie between 1 and 8, got 9\. Ask for another number of lengths\.$"
    ):
        window_lengths(8, num=9)
