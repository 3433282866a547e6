"""All thirteen tasks: lengths, seeds, templates round them; and the averages against RULER's published table."""

import json
from math import isnan, nan
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from needles.metrics import string_match_all, string_match_part
from needles.ruler import (
    LENGTHS,
    TASKS,
    available_tasks,
    average_lengths,
    average_tasks,
    build_samples,
    effective_length,
)
from needles.sample import Sample
from needles.tokenizer import decode

BOOK = Path(__file__).parents[2] / "workers/reference/tom_sawyer.txt"

# NVIDIA/RULER, README: scores at 4k, .., 128k; effective length; average, increasing, decreasing
PUBLISHED = {
    "GPT-4-1106-preview": ((96.6, 96.3, 95.2, 93.2, 87.0, 81.2), 65536, (91.6, 89.0, 94.1)),
    "Llama3.1-70B": ((96.5, 95.8, 95.4, 94.8, 88.4, 66.6), 65536, (89.6, 85.5, 93.7)),
    "Llama3.1-8B": ((95.5, 93.8, 91.6, 87.4, 84.7, 77.0), 32768, (88.3, 85.4, 91.3)),
    "Phi3-mini": ((92.2, 91.5, 90.7, 87.5, 80.6, 66.7), 32768, (84.8, 80.9, 88.7)),
    "InternLM2.5": ((88.1, 85.5, 84.5, 82.7, 75.5, 68.9), 4096, (80.9, 77.8, 83.9)),
    "Mistral-Nemo": ((87.8, 87.2, 87.7, 69.0, 46.8, 19.0), 16384, (66.2, 54.7, 77.8)),
    "DBRX": ((95.1, 93.8, 83.6, 63.1, 2.4, 0.0), 8192, (56.3, 38.0, 74.7)),
    "LWM": ((82.3, 78.4, 73.7, 69.1, 68.1, 65.0), None, (72.8, 69.9, 75.7)),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files in the form of SQuAD's and HotpotQA's own, whose documents are a book's sentences."""
    folder = tmp_path_factory.mktemp("qa")
    sentences = [sentence for sentence in BOOK.read_text().split(".\n") if 40 < len(sentence) < 300]
    squad = {
        "data": [
            {"paragraphs": [{"context": text, "qas": [{"question": "Who?", "answers": [{"text": text[:20]}]}]}]}
            for text in sentences
        ]
    }
    hotpotqa = [{"question": "Who?", "answer": text[:20], "context": [["A", [text]]]} for text in sentences]
    (folder / "squad.json").write_text(json.dumps(squad))
    (folder / "hotpotqa.json").write_text(json.dumps(hotpotqa))
    return {"squad": folder / "squad.json", "hotpotqa": folder / "hotpotqa.json"}


def build(
    tokenizer: PreTrainedTokenizerFast,
    task: str,
    files: dict[str, Path],
    *,
    num: int = 2,
    length: int = 4_000,
    seed: int = 0,
    is_chat: bool = False,
) -> list[Sample]:
    return build_samples(
        task,
        tokenizer,
        num_samples=num,
        length=length,
        rng=np.random.default_rng(seed),
        corpus=BOOK,
        is_chat=is_chat,
        squad=files["squad"],
        hotpotqa=files["hotpotqa"],
    )


@pytest.mark.parametrize("model", PUBLISHED)
def test_averages_are_those_of_rulers_published_table(model: str) -> None:
    values, _, expected = PUBLISHED[model]
    averages = average_lengths(dict(zip(LENGTHS, values, strict=True)))
    # The table's scores are rounded to 0.05 and so are its averages
    assert averages == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("model", PUBLISHED)
def test_effective_lengths_are_those_of_rulers_published_table(model: str) -> None:
    values, expected, _ = PUBLISHED[model]
    assert effective_length(dict(zip(LENGTHS, values, strict=True))) == expected


def test_the_thirteen_tasks_have_rulers_budgets_and_metrics() -> None:
    assert {name: task.num_generated for name, task in TASKS.items()} == {
        "niah_single_1": 128,
        "niah_single_2": 128,
        "niah_single_3": 128,
        "niah_multikey_1": 128,
        "niah_multikey_2": 128,
        "niah_multikey_3": 128,
        "niah_multivalue": 128,
        "niah_multiquery": 128,
        "vt": 30,
        "cwe": 120,
        "fwe": 50,
        "qa_1": 32,
        "qa_2": 32,
    }
    assert {name for name, task in TASKS.items() if task.metric is string_match_part} == {"qa_1", "qa_2"}
    assert sum(task.metric is string_match_all for task in TASKS.values()) == 11
    assert TASKS["vt"].metric("ABCDE", ["ABCDE", "FGHIJ"]) == 0.5
    assert TASKS["qa_1"].metric("ABCDE", ["ABCDE", "FGHIJ"]) == 1.0


def test_weights_follow_the_order_of_the_lengths() -> None:
    averages = average_lengths({32: 60.0, 8: 90.0, 1024: 30.0})
    assert averages == pytest.approx((60.0, (90 + 2 * 60 + 3 * 30) / 6, (3 * 90 + 2 * 60 + 30) / 6))


def test_a_score_of_the_baseline_itself_passes() -> None:
    scores = {4096: 71.2, 8192: 71.0, 16384: 71.3, 32768: 60.0}
    assert effective_length(scores) is None
    assert effective_length(scores, threshold=71.2) == 16384
    assert effective_length({4096: nan, 8192: 90.0}) == 8192
    assert effective_length({}) is None


def test_an_average_says_which_tasks_it_is_of() -> None:
    average = average_tasks({"vt": 40.0, "niah_single_1": 100.0, "cwe": nan})
    assert average.score == 70.0
    assert average.measured == ("niah_single_1", "vt")
    assert len(average.left_out) == 11
    assert {"cwe", "qa_1", "qa_2", "fwe"} < set(average.left_out)
    assert isnan(average_tasks({}).score)
    assert average_tasks(dict.fromkeys(TASKS, 50.0)) == (50.0, tuple(TASKS), ())


def test_averages_of_what_is_not_there_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^scores must be of RULER's tasks, got passkey\. Leave out what is not"):
        average_tasks({"passkey": 1.0})
    with pytest.raises(ValueError, match=r"^scores must be of one length or more, got none\. Measure a length first"):
        average_lengths({})
    assert isnan(average_lengths({4096: 90.0, 8192: nan}).mean)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("length", [2_777, 2_778, 4_500])
def test_prompt_and_answer_have_exactly_the_length(
    tokenizer: PreTrainedTokenizerFast, files: dict[str, Path], task: str, length: int
) -> None:
    if task == "cwe":
        length = min(length, 4_000)  # from 4,096 on ten words come 30 times each, too many where a word is many tokens
    if task == "vt" and "VAR =" not in tokenizer.decode(tokenizer("VAR =")["input_ids"]):
        with pytest.raises(ValueError, match=r"^the tokenizer must be able to encode 'VAR .*', got something else"):
            build(tokenizer, task, files, num=1, length=length)
        return
    sample = build(tokenizer, task, files, num=1, length=length)[0]
    assert len(sample.token_ids) + sample.num_generated == sample.length == length
    assert sample.token_ids.dtype == np.int32
    assert sample.num_generated == TASKS[task].num_generated


@pytest.mark.parametrize("task", TASKS)
def test_a_seed_gives_the_same_samples_and_more_of_them_begin_with_the_same(
    reference: PreTrainedTokenizerFast, files: dict[str, Path], task: str
) -> None:
    length = 2_000
    once = build(reference, task, files, num=3, length=length)
    fewer = build(reference, task, files, num=2, length=length)
    other = build(reference, task, files, num=3, length=length, seed=1)
    assert [sample.id for sample in once[:2]] == [sample.id for sample in fewer]
    for one, same in zip(once, fewer, strict=False):
        assert np.array_equal(one.token_ids, same.token_ids)
        assert (one.answers, one.depth) == (same.answers, same.depth)
    assert len({sample.id for sample in once + other}) == 6
    assert len({sample.token_ids.tobytes() for sample in once + other}) == 6


@pytest.mark.parametrize("task", TASKS)
def test_a_chat_model_gets_the_same_words_in_its_own_template(
    chat: PreTrainedTokenizerFast, files: dict[str, Path], task: str
) -> None:
    length = 4_000
    sample = build(chat, task, files, num=1, length=length, is_chat=True)[0]
    text = decode(chat, sample.token_ids.tolist())
    assert len(sample.token_ids) + sample.num_generated == length
    assert sample.token_ids.tolist().count(chat.convert_tokens_to_ids("<|assistant|>")) == 1
    user, _, model = text.removeprefix("<|user|>\n").partition("<|end|>\n<|assistant|>\n")
    beginnings = {
        "vt": "Answer: According to the chain(s) of variable assignment in the text above, 5 variables are assgined",
        "cwe": "Answer: The top 10 words that appear most often in the list are:",
        "fwe": "Answer: According to the coded text above, the three most frequently appeared words are:",
        "qa_1": "Answer:",
        "qa_2": "Answer:",
    }
    assert model.startswith(beginnings.get(task, "The special magic "))
    base = decode(chat, build(chat, task, files, num=1, length=length)[0].token_ids.tolist())
    assert user[:60] == base[:60]
    assert user[-20:] == base.removesuffix(model)[-21:].removesuffix(" ")


def test_tasks_without_their_file_are_left_out_with_the_reason(files: dict[str, Path], tmp_path: Path) -> None:
    without = available_tasks()
    assert without.names == tuple(TASKS)[:11]
    assert without.left_out == {
        "qa_1": "needs a squad file, and none was given",
        "qa_2": "needs a hotpotqa file, and none was given",
    }
    assert available_tasks(squad=files["squad"]).names == tuple(TASKS)[:12]
    assert available_tasks(**files) == (tuple(TASKS), {})
    with pytest.raises(ValueError, match=r"^hotpotqa must be a file, got .*, which is none\. Check the path, or leave"):
        available_tasks(hotpotqa=tmp_path / "nothing.json")


@pytest.mark.parametrize("task", TASKS)
def test_a_length_too_short_for_the_task_is_refused(
    reference: PreTrainedTokenizerFast, files: dict[str, Path], task: str
) -> None:
    message = rf"^length must be at least \d+ tokens for this sample of {task}, \d+ of them to generate, got 100\. Ask"
    with pytest.raises(ValueError, match=message):
        build(reference, task, files, length=100)


def test_the_least_length_that_is_named_can_be_built(
    reference: PreTrainedTokenizerFast, files: dict[str, Path]
) -> None:
    for task in ("niah_single_2", "qa_1"):
        with pytest.raises(ValueError, match="length must be at least") as error:
            build(reference, task, files, num=1, length=40)
        least = int(str(error.value).split()[5])
        assert build(reference, task, files, num=1, length=least)[0].length == least


def test_a_corpus_too_small_for_the_length_is_refused(reference: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    path = tmp_path / "small.txt"
    path.write_text("A little text. It has two sentences.\n" * 3)
    rng = np.random.default_rng(0)
    message = r"^the heldout part of .*small\.txt must fill the prompt of niah_single_2 with 1872 tokens, got \d+ with"
    with pytest.raises(ValueError, match=message):
        build_samples("niah_single_2", reference, num_samples=1, length=2_000, rng=rng, corpus=path)


def test_a_tokenizer_that_knows_no_digits_is_refused(digitless: PreTrainedTokenizerFast) -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(
        ValueError, match=r"^the tokenizer must be able to encode 'One of .*\.', got something else back\. Use"
    ):
        build_samples("niah_single_1", digitless, num_samples=1, length=2_000, rng=rng)


def test_what_cannot_be_asked_for_is_refused(
    reference: PreTrainedTokenizerFast, byte_level: PreTrainedTokenizerFast
) -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"^the RULER task must be one of niah_single_1, .*, qa_2, got 'niah'\. Name"):
        build_samples("niah", reference, num_samples=1, length=2_000, rng=rng)
    with pytest.raises(ValueError, match=r"^num_samples must be at least 1, got 0\. Ask for one or more\.$"):
        build_samples("vt", reference, num_samples=0, length=2_000, rng=rng)
    with pytest.raises(ValueError, match=r"^qa_1 must have a squad file, got none\. Give its path, or leave the task"):
        build_samples("qa_1", reference, num_samples=1, length=2_000, rng=rng)
    with pytest.raises(ValueError, match=r"^a chat prompt needs a tokenizer with a chat template, got none\. Use the"):
        build_samples("vt", byte_level, num_samples=1, length=2_000, rng=rng, is_chat=True)


def test_a_chat_template_that_drops_the_message_is_refused() -> None:
    from tests.needles.conftest import byte_level_bpe

    tokenizer = byte_level_bpe()
    tokenizer.chat_template = "{% for message in messages %}nothing{% endfor %}"
    with pytest.raises(ValueError, match=r"^the chat template must repeat the user's message, got a text without it"):
        build_samples("vt", tokenizer, num_samples=1, length=2_000, rng=np.random.default_rng(0), is_chat=True)
