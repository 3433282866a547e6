"""Variable tracking, common words and frequent words against RULER's rules, written down by hand."""

import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from needles.corpus import NOISE as NOISE_CORPUS
from needles.frame import BASE_FRAME
from needles.ruler import build_samples
from needles.ruler_tasks.building import Builder
from needles.ruler_tasks.common_words import WordPool, common_words_puzzle
from needles.ruler_tasks.frequent_words import word_counts
from needles.sample import Sample
from needles.tokenizer import decode

BOOK = Path(__file__).parents[2] / "workers/reference/tom_sawyer.txt"
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
TRACK = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
LIST = (
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n"
)
ASK_LIST = (
    "\nQuestion: What are the 10 most common words in the above list? "
    "Answer: The top 10 words that appear most often in the list are:"
)
CODED = (
    "Read the following coded text and track the frequency of each coded word. "
    "Find the three most frequently appeared coded words. "
)
ASK_CODED = (
    "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three most frequently "
    "appeared words in the above coded text? "
    "Answer: According to the coded text above, the three most frequently appeared words are:"
)


def build(
    tokenizer: PreTrainedTokenizerFast, task: str, length: int, num: int = 3, corpus: Path | str = BOOK
) -> list[tuple[Sample, str]]:
    rng = np.random.default_rng(0)
    samples = build_samples(task, tokenizer, num_samples=num, length=length, rng=rng, corpus=corpus)
    return [(sample, decode(tokenizer, sample.token_ids.tolist()).removeprefix("<s>")) for sample in samples]


def ask_chain(value: str) -> str:
    return (
        f"\nQuestion: Find all variables that are assigned the value {value} in the text above. Answer: According to "
        f"the chain(s) of variable assignment in the text above, 5 variables are assgined the value {value}, they are: "
    )


def check_chain(context: str, names: list[str], value: str) -> None:
    lines = context.split("\n")
    expected = [f"VAR {names[0]} = {value}"]
    expected += [f"VAR {name} = VAR {before} " for before, name in pairwise(names)]
    assert [line for line in lines if line.startswith("VAR")] == expected
    noise = [line for line in lines if not line.startswith("VAR")]
    assert all(line == NOISE for line in noise[:-1])
    assert NOISE.startswith(re.sub(r"( ?\.)+$", "", noise[-1]))


@pytest.mark.parametrize("length", [1_500, 4_096])
def test_a_chain_of_five_variables_follows_a_solved_example(reference: PreTrainedTokenizerFast, length: int) -> None:
    for sample, text in build(reference, "vt", length):
        _, example, question = text.split(TRACK)
        value = re.findall(r"VAR [A-Z]{5} = (\d{5})\n", question)[0]
        assert question.endswith(ask_chain(value))
        assert len(sample.answers) == 5
        assert all(re.fullmatch(r"[A-Z]{5}", name) for name in sample.answers)
        check_chain(question.removesuffix(ask_chain(value)), list(sample.answers), value)
        assert sample.num_generated == 30

        example_value = re.findall(r"VAR [A-Z]{3} = (\d{5})\n", example)[0]
        context, _, answer = example.partition(ask_chain(example_value))
        names = answer.removesuffix("\n\n").removeprefix(" ").split(" ")
        assert answer == f" {' '.join(names)}\n\n"
        assert all(re.fullmatch(r"[A-Z]{3}", name) for name in names)
        check_chain(context, names, example_value)
        assert example_value != value


def test_the_example_is_as_long_as_500_tokens_allow(reference: PreTrainedTokenizerFast) -> None:
    for _, text in build(reference, "vt", 4_096):
        example = text[: text.index(TRACK, 1)].removesuffix("\n\n")
        num_tokens = len(reference(example, add_special_tokens=False)["input_ids"])
        one_line = len(reference(f"{NOISE}\n", add_special_tokens=False)["input_ids"])
        assert num_tokens <= 500 < num_tokens + one_line + 3  # places of the lines change the tokens a little


def test_hops_keep_their_order_and_noise_stands_before_each(reference: PreTrainedTokenizerFast) -> None:
    for _, text in build(reference, "vt", 2_000, num=20):
        lines = text.split(TRACK)[2].split("\nQuestion")[0].split("\n")
        places = [place for place, line in enumerate(lines) if line.startswith("VAR")]
        assert places[-1] < len(lines) - 1


@pytest.mark.parametrize(
    ("length", "common", "uncommon", "num_example", "example_common", "example_uncommon"),
    [(3_000, 6, 1, 20, 3, 1), (6_000, 30, 3, 40, 10, 3)],
)
def test_ten_words_come_often_and_the_others_seldom(
    reference: PreTrainedTokenizerFast,
    length: int,
    common: int,
    uncommon: int,
    num_example: int,
    example_common: int,
    example_uncommon: int,
) -> None:
    for sample, text in build(reference, "cwe", length):
        _, example, question = text.split(LIST)
        assert question.endswith(ASK_LIST)
        counts = listed(question.removesuffix(ASK_LIST))
        assert sample.num_generated == 120
        assert len(set(sample.answers)) == 10
        assert {counts.pop(word) for word in sample.answers} == {common}
        assert len(counts) > 20
        assert sorted(counts.values())[1:] == [uncommon] * (len(counts) - 1)  # the last one may come less often
        assert 1 <= min(counts.values()) <= uncommon

        context, _, solution = example.partition(ASK_LIST)
        counts = listed(context)
        words = [word for word, count in counts.items() if count == example_common]
        assert len(words) == 10
        assert len(counts) == num_example
        assert sorted(counts.values())[: num_example - 10] == [example_uncommon] * (num_example - 10)
        assert Counter(listed(solution.removesuffix("\n")).keys()) == Counter(words)
        assert solution.startswith("1. ")


def listed(context: str) -> Counter[str]:
    """Count the words of a numbered list; it may end with full stops."""
    context = re.sub(r"( \.)+$|\. (\. )*\.$", "", context)
    found = re.findall(r"(\d+)\. (\S+)(?: |$)", context)
    assert " ".join(f"{number}. {word}" for number, word in found) == context
    assert [int(number) for number, _ in found] == list(range(1, len(found) + 1))
    return Counter(word.rstrip(".") for _, word in found)


def test_words_are_the_corpus_s_and_our_own(reference: PreTrainedTokenizerFast) -> None:
    book = set(re.findall(r"[a-z]+", BOOK.read_text()))
    words = [word for sample, _ in build(reference, "cwe", 2_500, num=8) for word in sample.answers]
    assert sum(word in book for word in words) > 64
    assert all(word.islower() for word in words)


def test_pairs_of_words_make_up_for_a_corpus_with_few(reference: PreTrainedTokenizerFast) -> None:
    for sample, text in build(reference, "cwe", 12_000, num=1, corpus=NOISE_CORPUS):
        assert not any("-" in word for word in sample.answers)
        assert re.search(r"\d\. [a-z]+-[a-z]+ ", text)


def test_too_few_words_for_the_length_are_refused(reference: PreTrainedTokenizerFast) -> None:
    pool = WordPool(tuple(f"word{chr(97 + number)}" for number in range(20)), ("calm-owl", "wise-cat"))
    rng = np.random.default_rng(0)
    builder = Builder("cwe", reference, BASE_FRAME, num_generated=120, length=4_000)
    message = (
        r"^the list of words must fill the prompt of cwe with 3880 tokens, got \d+ with all of it\. Give more text"
    )
    with pytest.raises(ValueError, match=message):
        builder.build(0, common_words_puzzle(rng, length=4_000, pool=pool))


def test_counts_follow_the_zeta_law() -> None:
    # 1,000 / zeta(2) = 607.9; a quarter, a ninth, .. of it, rounded down
    assert word_counts(1_000, 6).tolist() == [607, 151, 67, 37, 24, 16]
    assert word_counts(27, 5).tolist() == [16, 4, 1, 1, 0]


@pytest.mark.parametrize("length", [300, 600, 1_000, 4_000])
def test_three_coded_words_are_more_frequent_than_all_others(reference: PreTrainedTokenizerFast, length: int) -> None:
    for sample, text in build(reference, "fwe", length, num=5):
        assert text.startswith(CODED)
        assert text.endswith(ASK_CODED)
        words = text.removeprefix(CODED).removesuffix(ASK_CODED).split(" ")
        counts = Counter(word for word in words if not set(word) <= {"."})
        assert all(re.fullmatch(r"[a-z]{6}\.*", word) for word in counts)
        ranked = [count for _, count in counts.most_common(4)]
        assert {word for word, _ in counts.most_common(3)} == set(sample.answers)
        assert [counts[word] for word in sample.answers] == ranked[:3]
        assert len(ranked) == 3 or ranked[3] < ranked[2]
        assert len(counts) <= max(length // 50, 4) - 1
        assert sample.num_generated == 50
        # Dots have 61 % of the draw, more only where words are few and for the exact length
        dots = words.count("...")
        assert dots == pytest.approx(1.645**-1 * len(words), rel=0.35)


def test_a_text_of_random_words_has_the_law_s_counts(reference: PreTrainedTokenizerFast) -> None:
    sample, text = build(reference, "fwe", 20_000, num=1)[0]
    words = Counter(text.removeprefix(CODED).removesuffix(ASK_CODED).split(" "))
    first = words[sample.answers[0]]
    num_words = first * 4 * 1.644934  # rank 2 has a quarter of 1 / zeta(2)
    for rank, word in enumerate(sample.answers, start=2):
        assert words[word] == pytest.approx(num_words / 1.644934 / rank**2, abs=2)
