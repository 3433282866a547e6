"""The eight retrieval tasks against RULER's configuration, written down by hand."""

import re
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from needles.ruler import build_samples
from needles.sample import Sample
from needles.tokenizer import decode

BOOK = Path(__file__).parents[2] / "workers/reference/tom_sawyer.txt"
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NUMBER = r"[1-9]\d{6}"
UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
WORD = r"[a-z]+-[a-z]+"
LENGTH = 2_400

# kind in the question, kind of keys, kind of values, sentences hidden, answers
ESSAY_TASKS = {
    "niah_single_2": ("number", WORD, NUMBER, 1, 1),
    "niah_single_3": ("uuid", WORD, UUID, 1, 1),
    "niah_multikey_1": ("number", WORD, NUMBER, 4, 1),
    "niah_multivalue": ("numbers", WORD, NUMBER, 4, 4),
    "niah_multiquery": ("numbers", WORD, NUMBER, 4, 4),
}


def build(
    tokenizer: PreTrainedTokenizerFast, task: str, num: int = 5, length: int = LENGTH, seed: int = 0
) -> list[tuple[Sample, str]]:
    rng = np.random.default_rng(seed)
    samples = build_samples(task, tokenizer, num_samples=num, length=length, rng=rng, corpus=BOOK)
    return [(sample, decode(tokenizer, sample.token_ids.tolist()).removeprefix("<s>")) for sample in samples]


def hidden(text: str, key: str, value: str) -> list[tuple[str, str]]:
    kind = "uuids" if value == UUID else "numbers"
    return re.findall(rf"One of the special magic {kind} for ({key}) is: ({value})\.", text)


@pytest.mark.parametrize("task", ESSAY_TASKS)
def test_essays_hide_what_rulers_configuration_says(reference: PreTrainedTokenizerFast, task: str) -> None:
    kind, key, value, num_hidden, num_answers = ESSAY_TASKS[task]
    for sample, text in build(reference, task):
        needles = hidden(text, key, value)
        assert len(needles) == num_hidden
        assert len(sample.answers) == num_answers
        assert sample.num_generated == 128
        if kind in ("number", "uuid"):
            before = (
                f"A special magic {kind} is hidden within the following text. Make sure to memorize it. "
                f"I will quiz you about the {kind} afterwards.\n"
            )
            asked = next(key for key, value in needles if value == sample.answers[0])
            after = (
                f"\nWhat is the special magic {kind} for {asked} mentioned in the provided text? "
                f"The special magic {kind} for {asked} mentioned in the provided text is"
            )
        else:
            before = (
                "Some special magic numbers are hidden within the following text. Make sure to memorize it. "
                "I will quiz you about the numbers afterwards.\n"
            )
            keys = list(dict.fromkeys(next(key for key, value in needles if value == want) for want in sample.answers))
            asked = keys[0] if task == "niah_multivalue" else f"{keys[0]}, {keys[1]}, {keys[2]}, and {keys[3]}"
            after = (
                f"\nWhat are all the special magic numbers for {asked} mentioned in the provided text? "
                f"The special magic numbers for {asked} mentioned in the provided text are"
            )
        assert text.startswith(before)
        assert text.endswith(after)
        context = text.removeprefix(before).removesuffix(after)
        assert "\n" not in context  # RULER squeezes the white space of its essays


def test_several_values_have_one_key_and_several_queries_have_four(reference: PreTrainedTokenizerFast) -> None:
    for sample, text in build(reference, "niah_multivalue"):
        needles = hidden(text, WORD, NUMBER)
        assert len({key for key, _ in needles}) == 1
        assert {value for _, value in needles} == set(sample.answers)
    for sample, text in build(reference, "niah_multiquery"):
        needles = hidden(text, WORD, NUMBER)
        assert len({key for key, _ in needles}) == 4
        assert {value for _, value in needles} == set(sample.answers)


def test_answers_come_in_the_order_of_the_questions_and_not_of_the_haystack(reference: PreTrainedTokenizerFast) -> None:
    in_order = 0
    for sample, text in build(reference, "niah_multiquery", num=30, length=1_000):
        question = text[text.index("What are all") : text.index("mentioned in the provided text?")]
        by_key = dict(hidden(text, WORD, NUMBER))
        assert [by_key[key] for key in re.findall(rf"{WORD}(?=,| )", question)] == list(sample.answers)
        in_order += list(by_key.values()) == list(sample.answers)
    assert in_order < 10  # 30 / 4! = 1.25 by chance


def test_noise_is_rulers_sentence_again_and_again_with_the_needle_on_a_line(
    byte_level: PreTrainedTokenizerFast,
) -> None:
    for sample, text in build(byte_level, "niah_single_1"):
        context = text.partition("afterwards.\n")[2].rpartition("\nWhat is the special magic number for ")[0]
        *lines, last = context.split("\n")
        needle = [line for line in lines if line != NOISE]
        assert re.fullmatch(rf"One of the special magic numbers for {WORD} is: {sample.answers[0]}\.", needle[0])
        assert len(needle) == 1
        assert NOISE.startswith(re.sub(r"( ?\.)+$", "", last))


@pytest.mark.parametrize(("task", "key", "value"), [("niah_multikey_2", WORD, NUMBER), ("niah_multikey_3", UUID, UUID)])
def test_a_haystack_of_needles_has_the_key_and_the_value_once(
    byte_level: PreTrainedTokenizerFast, task: str, key: str, value: str
) -> None:
    for sample, text in build(byte_level, task):
        context = text.partition("afterwards.\n")[2].rpartition("\nWhat is the special magic ")[0]
        needles = hidden(context, key, value)
        assert len(needles) in (context.count("\n"), context.count("\n") + 1)  # the last line may be cut off
        assert len(needles) > 15
        asked = next(key for key, value in needles if value == sample.answers[0])
        assert text.endswith(f" for {asked} mentioned in the provided text is")
        assert (context.count(asked), context.count(sample.answers[0])) == (1, 1)


def test_the_depth_is_where_the_needle_lies(byte_level: PreTrainedTokenizerFast) -> None:
    for task in ("niah_single_1", "niah_single_2", "niah_multikey_1", "niah_multikey_2"):
        for sample, text in build(byte_level, task, length=4_000):
            context = text.partition("afterwards.\n")[2].rpartition("\nWhat is the special magic ")[0]
            assert sample.depth is not None
            # The other sentences hidden, 70 characters each of some 8,000, are no part of the haystack
            assert context.index(sample.answers[0]) / len(context) == pytest.approx(sample.depth, abs=0.04)


def test_depths_are_spread_over_the_whole_haystack(reference: PreTrainedTokenizerFast) -> None:
    for task in ("niah_single_1", "niah_single_2", "niah_multikey_2"):
        depths = [sample.depth for sample, _ in build(reference, task, num=80, length=800)]
        counts, _ = np.histogram(np.array(depths, dtype=np.float64), bins=4, range=(0, 1))
        # 20 expected in each; four standard deviations of a binomial are 15
        assert np.all(np.abs(counts - 20) < 15)


def test_a_sample_whose_keys_are_taken_has_no_depth(reference: PreTrainedTokenizerFast) -> None:
    for task in ("niah_multivalue", "niah_multiquery"):
        assert all(sample.depth is None for sample, _ in build(reference, task))
