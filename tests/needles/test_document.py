from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from needles.corpus import SPLITS, Split
from needles.document import NeedleDocument, build_document, build_documents
from needles.needle import Needle
from needles.passage import Passage, Piece
from needles.prompts import RULER_BASE, chat_prompt
from needles.tokenizer import decode

NEEDLE = Needle("numerous-kite", "6716097")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, book: str) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "book.txt"
    path.write_text(book)
    return path


@pytest.fixture(scope="module")
def passage(book: str) -> Passage:
    return Passage((Piece("book.txt", 0, book[:20_000]),))


def build(
    tokenizer: PreTrainedTokenizerFast,
    source: Path | str,
    *,
    split: Split = "search",
    num: int = 10,
    length: int = 512,
    seed: int = 0,
    taken: list[Needle] | None = None,
) -> list[NeedleDocument]:
    return build_documents(
        tokenizer,
        source,
        split=split,
        num_documents=num,
        length=length,
        rng=np.random.default_rng(seed),
        taken=taken or [],
    )


def text_of(tokenizer: PreTrainedTokenizerFast, document: NeedleDocument) -> str:
    return decode(tokenizer, document.token_ids.tolist())


def test_documents_have_exactly_the_length_asked_for(tokenizer: PreTrainedTokenizerFast, passage: Passage) -> None:
    for length in [*range(400, 412), 777, 1024, 2049]:
        for depth in (0.0, 0.31, 0.5, 1.0):
            document = build_document(tokenizer, passage, [NEEDLE], split="search", length=length, depths=[depth])
            assert len(document.token_ids) == document.length == length
            assert document.answer_start + document.num_answer_tokens == length


def test_documents_end_with_the_whole_answer_and_hold_the_whole_needle(
    tokenizer: PreTrainedTokenizerFast, passage: Passage
) -> None:
    for depth in np.linspace(0, 1, 21):
        document = build_document(tokenizer, passage, [NEEDLE], split="search", length=600, depths=[float(depth)])
        answer = decode(tokenizer, document.token_ids[document.answer_start :].tolist())
        assert answer.endswith(NEEDLE.value)
        assert NEEDLE.value not in decode(tokenizer, document.token_ids[document.answer_start + 1 :].tolist())
        assert NEEDLE.sentence() in text_of(tokenizer, document)


def test_the_ids_are_those_of_the_whole_text(eos: PreTrainedTokenizerFast, passage: Passage) -> None:
    document = build_document(eos, passage, [NEEDLE], split="search", length=600, depths=[0.5])
    text = decode(eos, document.token_ids[1:].tolist())
    assert [*document.token_ids, eos.eos_token_id] == eos(text)["input_ids"]
    assert document.token_ids[0] == eos.bos_token_id


def test_the_text_is_the_prompt_round_the_passage_and_the_needle(
    byte_level: PreTrainedTokenizerFast, passage: Passage
) -> None:
    document = build_document(byte_level, passage, [NEEDLE], split="search", length=600, depths=[0.0])
    haystack = passage.cut(0, int(document.passage_id.split(":")[1].rstrip("]")))
    assert text_of(byte_level, document) == RULER_BASE.write(f"{NEEDLE.sentence()} {haystack.text}", NEEDLE)
    assert document.passage_sha256 == sha256(haystack.text.encode()).hexdigest()
    assert document.depth == 0


def test_the_needle_lies_at_the_depth_asked_for_between_two_sentences(
    byte_level: PreTrainedTokenizerFast, passage: Passage
) -> None:
    for depth in np.linspace(0, 1, 11):
        document = build_document(byte_level, passage, [NEEDLE], split="search", length=2_000, depths=[float(depth)])
        before, _, after = text_of(byte_level, document).partition(NEEDLE.sentence())
        assert before[-1].isspace()
        assert before.rstrip()[-1] in ".?!"
        assert document.depth == pytest.approx(depth, abs=0.05)  # a sentence is a fortieth of this haystack
        start = len(RULER_BASE.before)
        end = len(RULER_BASE.after.replace("{key}", NEEDLE.key)) + len(" 6716097")
        rest = len(after) - end - after.startswith(" ")
        assert document.depth == pytest.approx((len(before) - start) / (len(before) - start + rest))


def test_a_chat_document_begins_the_answer_after_the_assistants_header(
    chat: PreTrainedTokenizerFast, passage: Passage
) -> None:
    document = build_document(
        chat, passage, [NEEDLE], split="search", length=700, depths=[0.5], prompt=chat_prompt(chat)
    )
    assert document.length == 700
    text = text_of(chat, document)
    assert text.startswith("<|user|>\nA special magic number")
    assert text.endswith(
        "<|assistant|>\nThe special magic number for numerous-kite mentioned in the provided text is 6716097"
    )
    assert document.token_ids.tolist().count(chat.convert_tokens_to_ids("<|assistant|>")) == 1


def test_a_haystack_of_characters_with_three_or_four_tokens_each_is_met(byte_level: PreTrainedTokenizerFast) -> None:
    for character in ("漢", "🪢"):
        passage = Passage((Piece("foreign", 0, character * 2_000),))
        for length in range(500, 508):
            document = build_document(byte_level, passage, [NEEDLE], split="search", length=length, depths=[0.5])
            assert document.length == length


def test_depths_fill_every_part_of_the_haystack_once(byte_level: PreTrainedTokenizerFast, corpus: Path) -> None:
    documents = build(byte_level, corpus, num=10, length=4_000)
    depths = [document.depth for document in documents]
    assert depths != sorted(depths)
    for part, depth in enumerate(sorted(depths)):
        assert part / 10 - 0.02 <= depth <= (part + 1) / 10 + 0.02  # half a sentence is below 2 % of the haystack


def test_splits_share_no_text_no_key_and_no_value(byte_level: PreTrainedTokenizerFast, corpus: Path) -> None:
    needles: list[Needle] = []
    sentences: dict[Split, set[str]] = {}
    for split in SPLITS:
        documents = build(byte_level, corpus, split=split, taken=needles)
        needles += [document.needle for document in documents]
        sentences[split] = set(sentences_of(byte_level, documents))
    assert len({needle.key for needle in needles}) == len({needle.value for needle in needles}) == 30
    assert not sentences["search"] & sentences["heldout"]
    assert not sentences["search"] & sentences["validation"]
    assert not sentences["validation"] & sentences["heldout"]


def sentences_of(tokenizer: PreTrainedTokenizerFast, documents: list[NeedleDocument]) -> Iterator[str]:
    """Yield the book's sentences that are long enough not to come twice by chance."""
    for document in documents:
        haystack = text_of(tokenizer, document).removeprefix(RULER_BASE.before).partition("\nWhat is the special")[0]
        for sentence in haystack.replace(document.needle.sentence(), "").replace("\n", " ").split(". "):
            if len(sentence.split()) > 6:
                yield sentence


@pytest.mark.parametrize("source", ["noise", "distractors"])
def test_generated_haystacks_serve_any_length(byte_level: PreTrainedTokenizerFast, source: str) -> None:
    for document in build(byte_level, source, num=3, length=3_001):
        assert document.length == 3_001
        assert text_of(byte_level, document).count(document.needle.key) == 3
        assert text_of(byte_level, document).count(document.needle.value) == 2


def test_the_same_generator_state_builds_the_same_documents(byte_level: PreTrainedTokenizerFast, corpus: Path) -> None:
    once, again, other = (build(byte_level, corpus, seed=seed) for seed in (5, 5, 6))
    assert once == again
    assert all(np.array_equal(a.token_ids, b.token_ids) for a, b in zip(once, again, strict=True))
    assert not {document.id for document in once} & {document.id for document in other}


def test_ids_and_hashes_follow_the_content(byte_level: PreTrainedTokenizerFast, corpus: Path) -> None:
    documents = build(byte_level, corpus, num=30) + build(byte_level, corpus, num=30, length=513)
    assert len({document.id for document in documents}) == len({document.sha256 for document in documents}) == 60
    for document in documents:
        assert document.sha256 == sha256(document.token_ids.astype("<i4").tobytes()).hexdigest()
        assert document.id == f"search-{document.length}-{document.sha256[:12]}"


def test_haystacks_come_from_all_over_the_split(byte_level: PreTrainedTokenizerFast, corpus: Path) -> None:
    assert len({document.passage_sha256 for document in build(byte_level, corpus, num=30)}) == 30


def test_a_haystack_goes_on_at_the_start_of_the_split_when_its_end_is_reached(
    byte_level: PreTrainedTokenizerFast, corpus: Path
) -> None:
    passages = [document.passage_id for document in build(byte_level, corpus, num=10, length=8_000)]
    assert passages[-1].endswith("]..book.txt[0:" + passages[-1].rpartition(":")[2])


def test_token_ids_cannot_be_changed(byte_level: PreTrainedTokenizerFast, passage: Passage) -> None:
    document = build_document(byte_level, passage, [NEEDLE], split="search", length=500, depths=[0.5])
    assert document.token_ids.dtype == np.int32
    with pytest.raises(ValueError, match="read-only"):
        document.token_ids[0] = 1


def test_a_haystack_shorter_than_the_document_is_refused(byte_level: PreTrainedTokenizerFast, corpus: Path) -> None:
    message = r"the haystack must fill a document of 60000 tokens, got \d+ with all \d+ characters of book\.txt\["
    with pytest.raises(ValueError, match=message):
        build(byte_level, corpus, length=60_000)


def test_a_length_below_the_prompt_is_refused(byte_level: PreTrainedTokenizerFast, corpus: Path) -> None:
    with pytest.raises(ValueError, match=r"length must be at least \d+ tokens for the prompt, its needles and their"):
        build(byte_level, corpus, length=50)


def test_a_tokenizer_that_cannot_encode_the_needle_is_refused(digitless: PreTrainedTokenizerFast, corpus: Path) -> None:
    with pytest.raises(ValueError, match="the tokenizer must be able to encode the needle 'One of the special magic"):
        build(digitless, corpus)


@pytest.mark.parametrize("depth", [-0.01, 1.01, float("nan")])
def test_a_depth_outside_the_haystack_is_refused(
    byte_level: PreTrainedTokenizerFast, passage: Passage, depth: float
) -> None:
    with pytest.raises(ValueError, match=r"depth must lie between 0 and 1, got .*\. Give a share of the haystack\."):
        build_document(byte_level, passage, [NEEDLE], split="search", length=500, depths=[depth])


def test_no_documents_are_refused(byte_level: PreTrainedTokenizerFast, corpus: Path) -> None:
    with pytest.raises(ValueError, match=r"num_documents must be at least 1, got 0\. Ask for one document or more\."):
        build(byte_level, corpus, num=0)
