"""Several needles in one document: where each answer is, where the needles lie, and that one needle is as ever."""

from copy import deepcopy
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from needles.corpus import DISTRACTORS, NOISE, Split
from needles.document import NeedleDocument, build_document, build_documents
from needles.needle import Needle
from needles.passage import Passage, Piece
from needles.prompts import RULER_BASE, Prompt, chat_prompt
from needles.tokenizer import decode

BOOK = Path(__file__).parents[2] / "workers/reference/tom_sawyer.txt"
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
NEEDLES = [Needle("numerous-kite", "6716097"), Needle("odd-chair", "4438296"), Needle("glad-heron", "4679971")]


def build(
    tokenizer: PreTrainedTokenizerFast,
    num_needles: int,
    *,
    num: int = 10,
    length: int = 1_200,
    seed: int = 0,
    prompt: Prompt = RULER_BASE,
    taken: list[Needle] | None = None,
) -> list[NeedleDocument]:
    return build_documents(
        tokenizer,
        BOOK,
        split="search",
        num_documents=num,
        length=length,
        rng=np.random.default_rng(seed),
        num_needles=num_needles,
        prompt=prompt,
        taken=taken or [],
    )


def text_of(tokenizer: PreTrainedTokenizerFast, document: NeedleDocument) -> str:
    return decode(tokenizer, document.token_ids.tolist())


def check_spans(tokenizer: PreTrainedTokenizerFast, document: NeedleDocument) -> None:
    """Each span is the shortest that holds its needle's value, behind the needle's own question."""
    ids = document.token_ids.tolist()
    assert document.answer_spans[0][0] == document.answer_start
    assert document.answer_spans[-1][1] == document.length
    assert document.num_answer_tokens == sum(end - start for start, end in document.answer_spans)
    for needle, (start, end) in zip(document.needles, document.answer_spans, strict=True):
        assert needle.value in decode(tokenizer, ids[start:end])
        assert needle.value not in decode(tokenizer, ids[start + 1 : end])
        assert needle.value not in decode(tokenizer, ids[start : end - 1])
        question = f"special magic number for {needle.key} mentioned in the provided text is {needle.value}"
        assert decode(tokenizer, ids[:end]).rstrip().endswith(question)


def test_the_spans_hold_the_digits_of_the_values_and_nothing_else(reference: PreTrainedTokenizerFast) -> None:
    for document in build(reference, 4):
        check_spans(reference, document)
        ids = document.token_ids.tolist()
        answers = [decode(reference, ids[start:end]) for start, end in document.answer_spans]
        assert answers == [needle.value for needle in document.needles]
        assert document.num_answer_tokens == 4 * 7


def test_the_spans_hold_the_values_with_any_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    for document in build(tokenizer, 3, num=4):
        check_spans(tokenizer, document)


def test_a_line_break_merged_with_the_last_digit_belongs_to_the_answer(lines: PreTrainedTokenizerFast) -> None:
    for document in build(lines, 3, num=2, length=3_000):
        check_spans(lines, document)
        ids = document.token_ids.tolist()
        answers = [decode(lines, ids[start:end]) for start, end in document.answer_spans]
        first, second, last = (needle.value for needle in document.needles)
        assert answers == [f"{first}\n", f"{second}\n", last]


def test_the_text_has_the_needles_at_their_depths_and_a_question_and_answer_for_each(
    byte_level: PreTrainedTokenizerFast,
) -> None:
    passage = Passage((Piece("p", 0, "One. Two. Three. Four. " * 100),))
    document = build_document(byte_level, passage, NEEDLES, split="search", length=1_000, depths=[0.5, 1.0, 0.0])
    num_characters = int(document.passage_id.split(":")[1].rstrip("]"))
    haystack = passage.text[:num_characters]
    half = round(document.depths[0] * num_characters)
    kite, chair, heron = NEEDLES
    tail = haystack[half : round(document.depths[1] * num_characters)]
    assert text_of(byte_level, document).startswith(
        f"{RULER_BASE.before}{heron.sentence()} {haystack[:half]}{kite.sentence()} {tail}{chair.sentence()}"
    )
    assert text_of(byte_level, document).endswith(
        "\nWhat is the special magic number for numerous-kite mentioned in the provided text? "
        "The special magic number for numerous-kite mentioned in the provided text is 6716097\n"
        "What is the special magic number for odd-chair mentioned in the provided text? "
        "The special magic number for odd-chair mentioned in the provided text is 4438296\n"
        "What is the special magic number for glad-heron mentioned in the provided text? "
        "The special magic number for glad-heron mentioned in the provided text is 4679971"
    )
    assert document.depths == pytest.approx([0.5, 1.0, 0.0], abs=0.05)
    assert document.depth == pytest.approx(sum(document.depths) / 3)
    assert (document.needle, document.needles) == (kite, tuple(NEEDLES))


def test_a_chat_document_answers_all_in_the_models_one_turn(chat: PreTrainedTokenizerFast) -> None:
    document = build(chat, 2, num=1, prompt=chat_prompt(chat))[0]
    first, second = document.needles
    user, _, model = text_of(chat, document).partition("<|assistant|>\n")
    assert user.endswith(f"number for {first.key} mentioned in the provided text?<|end|>\n")
    assert model == (
        f"The special magic number for {first.key} mentioned in the provided text is {first.value}\n"
        f"What is the special magic number for {second.key} mentioned in the provided text? "
        f"The special magic number for {second.key} mentioned in the provided text is {second.value}"
    )
    check_spans(chat, document)


@pytest.mark.parametrize(
    ("source", "split", "length", "is_chat", "digest", "state"),
    [
        (BOOK, "search", 256, False, "c0c6f5ba0fd3525b", 191273238237994727253060149193527483287),
        (NOISE, "heldout", 1024, True, "5c5f939f993e7e16", 317946528334132227138795673749598981609),
        (DISTRACTORS, "search", 192, False, "34b321bf2af9b963", 41609201688448865795021356148535296290),
        (BOOK, "heldout", 1024, True, "fab959c1a938fe42", 317946528334132227138795673749598981609),
    ],
)
def test_documents_of_one_needle_are_those_of_before_there_could_be_several(
    reference: PreTrainedTokenizerFast,
    source: Path | str,
    split: Split,
    length: int,
    is_chat: bool,
    digest: str,
    state: int,
) -> None:
    tokenizer = deepcopy(reference)
    tokenizer.chat_template = TEMPLATE
    prompt = chat_prompt(tokenizer) if is_chat else RULER_BASE
    rng = np.random.default_rng([7, length])
    documents = build_documents(
        tokenizer, source, split=split, num_documents=5, length=length, rng=rng, prompt=prompt, num_needles=1
    )
    content = [(document.sha256, document.answer_start, document.depth) for document in documents]
    assert sha256(repr(content).encode()).hexdigest()[:16] == digest
    assert rng.bit_generator.state["state"]["state"] == state
    for document in documents:
        assert (document.needles, document.depths) == ((document.needle,), (document.depth,))
        assert document.answer_spans == ((document.answer_start, length),)


def test_every_needle_is_inside_the_haystack_once(tokenizer: PreTrainedTokenizerFast) -> None:
    for num_needles in (2, 4):
        for document in build(tokenizer, num_needles, num=3, length=1_500):
            haystack, _, questions = text_of(tokenizer, document).partition("What is the special magic number for")
            for needle in document.needles:
                assert haystack.count(needle.sentence()) == 1
                assert (haystack.count(needle.key), haystack.count(needle.value)) == (1, 1)
                assert (questions.count(needle.key), questions.count(needle.value)) == (2, 1)


def test_depths_fill_every_part_of_each_haystack_and_of_all_of_them_once(reference: PreTrainedTokenizerFast) -> None:
    documents = build(reference, 4, num=5, length=4_000)
    ordered = np.array([sorted(document.depths) for document in documents])
    tolerance = 0.02  # half a sentence of the haystack; a few of the book are longer than most
    for part in range(4):
        for stratum, depth in enumerate(sorted(ordered[:, part])):
            start = (part + stratum / 5) / 4
            assert start - tolerance <= depth <= start + 1 / 20 + tolerance


def test_the_order_of_the_questions_is_not_that_of_the_haystack(reference: PreTrainedTokenizerFast) -> None:
    places = np.array([np.argsort(document.depths) for document in build(reference, 3, num=120, length=512)])
    for question in range(3):
        # 40 expected of each; five standard deviations of a binomial are 26
        assert np.all(np.abs(np.bincount(places[:, question], minlength=3) - 40) < 26)


def test_all_needles_of_all_documents_differ(reference: PreTrainedTokenizerFast) -> None:
    documents = build(reference, 3)
    found = [needle for document in documents for needle in document.needles]
    found += [n for document in build(reference, 3, seed=1, taken=found) for n in document.needles]
    assert len({needle.key for needle in found}) == len({needle.value for needle in found}) == 60


def test_the_same_generator_state_builds_the_same_documents(reference: PreTrainedTokenizerFast) -> None:
    once, again, other = (build(reference, 3, seed=seed) for seed in (5, 5, 6))
    assert once == again
    assert not {document.sha256 for document in once} & {document.sha256 for document in other}


@pytest.mark.parametrize("num_needles", [0, -1])
def test_documents_without_a_needle_are_refused(reference: PreTrainedTokenizerFast, num_needles: int) -> None:
    message = rf"^num_needles must be at least 1, got {num_needles}\. Hide one needle or more in a document\.$"
    with pytest.raises(ValueError, match=message):
        build(reference, num_needles)


def test_more_needles_than_a_document_has_room_for_are_refused(reference: PreTrainedTokenizerFast) -> None:
    message = r"at least \d+ tokens for the prompt, its needles and their answers, got 256\. .* or for fewer needles in"
    with pytest.raises(ValueError, match=message):
        build(reference, 4, length=256)


def test_more_needles_than_there_are_keys_are_refused(reference: PreTrainedTokenizerFast) -> None:
    message = r"must be at most 10080, got 10100 after 0 taken ones\. Ask for fewer documents, or for fewer needles in"
    with pytest.raises(ValueError, match=message):
        build(reference, 101, num=100)
