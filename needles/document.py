"""Documents of an exact token length: a haystack with needles in it, and at the end the questions and answers."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from math import fsum
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from needles.answer import check_needles, find_answers
from needles.breaks import nearest_break
from needles.corpus import Split, read_split
from needles.fitting import Draft, fit_haystack
from needles.needle import Needle, draw_needles
from needles.passage import Passage
from needles.prompts import RULER_BASE, Prompt
from needles.sample import check_depth
from needles.tokenizer import Tokenizer, encode

_CHARACTERS_PER_TOKEN = 8  # twice what English text has
_MAX_CHARACTERS_PER_TOKEN = 32
_MAX_CHARACTERS = 64_000_000  # read for one call, however many documents it makes


class Answer(NamedTuple):
    """One of a document's answers."""

    needle: Needle
    """What is asked for."""

    depth: float
    """As `NeedleDocument.depth`, of this needle."""

    start: int
    """Index of the answer's first token."""

    end: int
    """Index after its last one."""


@dataclass(frozen=True, kw_only=True)
class NeedleDocument:
    """Token ids that end with the answers to their own questions, and where they came from."""

    id: str
    """Split, length and the beginning of `sha256`; unique, and the same whenever the content is the same."""

    split: Split
    """Which part of the corpus the haystack was taken from."""

    token_ids: npt.NDArray[np.int32] = field(compare=False, repr=False)
    """Shape (length,), int32, read-only; special tokens included. Compared by `sha256`."""

    answer_start: int
    """Index of the first answer's first token; see `answer_spans`."""

    depth: float
    """Characters of the haystack before the needle / characters of the haystack, 0..1, as it came out; the mean over
    needles where there are several."""

    needle: Needle
    """What is asked for first."""

    passage_id: str
    """Records and character ranges of the haystack."""

    passage_sha256: str
    """Hash of the haystack's text, hexadecimal."""

    sha256: str
    """Hash of the token ids as little-endian int32, hexadecimal."""

    answers: tuple[Answer, ...] = ()
    """All answers in the order of their questions, where there are several. Empty where there is one: then the fields
    above say all, and every token from `answer_start` on is the answer."""

    @property
    def needles(self) -> tuple[Needle, ...]:
        """What is asked for, in the order of the questions."""
        return tuple(answer.needle for answer in self.answers) or (self.needle,)

    @property
    def depths(self) -> tuple[float, ...]:
        """Depth of each needle, in the order of the questions."""
        return tuple(answer.depth for answer in self.answers) or (self.depth,)

    @property
    def answer_spans(self) -> tuple[tuple[int, int], ...]:
        """Index of each answer's first token and the one after its last, ascending; these tokens alone are scored."""
        return tuple((answer.start, answer.end) for answer in self.answers) or ((self.answer_start, self.length),)

    @property
    def length(self) -> int:
        """Tokens."""
        return len(self.token_ids)

    @property
    def num_answer_tokens(self) -> int:
        """Tokens scored."""
        return sum(end - start for start, end in self.answer_spans)


def build_documents(
    tokenizer: Tokenizer,
    source: str | Path,
    *,
    split: Split,
    num_documents: int,
    length: int,
    rng: np.random.Generator,
    num_needles: int = 1,
    prompt: Prompt = RULER_BASE,
    taken: Collection[Needle] = (),
    column: str = "text",
) -> list[NeedleDocument]:
    """Return documents of one length with needles of their own and depths spread evenly over 0..1.

    Several needles of a document lie one in each of as many equal parts of its haystack, and are asked for in random
    order; in each part the depths are spread evenly over the documents.

    Haystacks begin at places spread evenly over the split's text, which continues at its own start when it ends. They
    overlap where the split is shorter than all of them together; one haystack never repeats itself.

    Args:
        tokenizer: The model's.
        source: The corpus; see `corpus.read_texts`.
        split: The part of the corpus to use. Different ones share no text.
        num_documents: How many; at least 1.
        length: Tokens of each document, special tokens included.
        rng: Draws needles, depths, places and orders; the same state gives the same documents.
        num_needles: Needles in each document, all of them asked for; at least 1.
        prompt: What stands round the haystack.
        taken: Needles of other documents of the run, which these must not share.
        column: Field or column of the corpus that holds the text.

    Raises:
        ValueError: the corpus cannot be read or is too short, `num_documents` or `num_needles` is below 1, `length` is
            too short for the prompt, too few keys are left, or the tokenizer cannot encode a needle.
    """
    if num_documents < 1:
        raise ValueError(f"num_documents must be at least 1, got {num_documents}. Ask for one document or more.")
    if num_needles < 1:
        raise ValueError(f"num_needles must be at least 1, got {num_needles}. Hide one needle or more in a document.")
    needles = draw_needles(rng, num_documents * num_needles, taken=taken)
    depths = _stratified_depths(rng, num_documents, num_needles)
    text = read_split(source, split, num_characters=_characters_to_read(num_documents, length), column=column)
    documents = []
    for number, place in enumerate(_stratified(rng, num_documents)):
        passage = _passage_from(text, place, num_characters=_MAX_CHARACTERS_PER_TOKEN * length)
        hidden = needles[number * num_needles : (number + 1) * num_needles]
        document = build_document(
            tokenizer, passage, hidden, split=split, length=length, depths=depths[number].tolist(), prompt=prompt
        )
        documents.append(document)
    return documents


def build_document(
    tokenizer: Tokenizer,
    passage: Passage,
    needles: Sequence[Needle],
    *,
    split: Split,
    length: int,
    depths: Sequence[float],
    prompt: Prompt = RULER_BASE,
) -> NeedleDocument:
    """Return one document; its haystack is the beginning of the passage, as much of it as fits.

    Each answer's tokens are found in the finished ids, so a token that holds the answer's first digit and what stands
    before it belongs to the answer.

    Args:
        tokenizer: The model's.
        passage: Text for the haystack.
        needles: What to hide and ask for, in the order of the questions; at least one.
        split: Where the passage comes from.
        length: Tokens, special tokens included.
        depths: Where to put each needle, 0..1; it goes to the nearest end of a sentence or a line.
        prompt: What stands round the haystack.

    Raises:
        ValueError: a depth is outside 0..1, `length` is too short for the prompt, the passage is too short for
            `length`, or the tokenizer cannot encode a needle.
    """
    for depth in depths:
        check_depth(depth)

    def write(num_characters: int, ending: str) -> Draft:
        haystack, positions = _with_needles(passage.text[:num_characters], needles, depths)
        text = prompt.write(haystack + ending, *needles)
        token_ids = encode(tokenizer, text, add_special_tokens=prompt.add_special_tokens)
        return Draft(num_characters, tuple(position / max(num_characters, 1) for position in positions), token_ids)

    draft = fit_haystack(write, length, num_characters=len(passage.text), passage=passage.id)
    check_needles(tokenizer, draft.token_ids, needles)
    spans = find_answers(tokenizer, draft.token_ids, needles)
    answers = tuple(
        Answer(needle, depth, *span) for needle, depth, span in zip(needles, draft.depths, spans, strict=True)
    )
    haystack = passage.cut(0, draft.num_characters)
    token_ids = np.array(draft.token_ids, dtype=np.int32)
    token_ids.setflags(write=False)
    digest = sha256(token_ids.astype("<i4").tobytes()).hexdigest()
    return NeedleDocument(
        id=f"{split}-{length}-{digest[:12]}",
        split=split,
        token_ids=token_ids,
        answer_start=answers[0].start,
        depth=fsum(draft.depths) / len(draft.depths),
        needle=needles[0],
        passage_id=haystack.id,
        passage_sha256=haystack.sha256,
        sha256=digest,
        answers=answers if len(answers) > 1 else (),
    )


def _stratified(rng: np.random.Generator, num: int) -> npt.NDArray[np.float64]:
    """Return one number from each of `num` equal parts of 0..1, in order; shape (num,)."""
    return (np.arange(num) + rng.random(num)) / num


def _stratified_depths(rng: np.random.Generator, num_documents: int, num_needles: int) -> npt.NDArray[np.float64]:
    """Return each document's depths in random order, one from each of as many parts; shape (documents, needles).

    In each part the documents' depths are stratified too.
    """
    parts = [(part + rng.permutation(_stratified(rng, num_documents))) / num_needles for part in range(num_needles)]
    return rng.permuted(np.stack(parts, axis=1), axis=1)


def _characters_to_read(num_documents: int, length: int) -> int:
    wanted = min(num_documents * length * _CHARACTERS_PER_TOKEN, _MAX_CHARACTERS)
    return max(wanted, length * _MAX_CHARACTERS_PER_TOKEN)


def _passage_from(text: Passage, place: float, *, num_characters: int) -> Passage:
    """Return what follows a place, 0..1, of a text, going on from its start at its end."""
    start = nearest_break(text.text, round(place * len(text.text)))
    tail = text.cut(start, start + num_characters)
    return tail + text.cut(0, min(start, num_characters - len(tail.text)))


def _with_needles(haystack: str, needles: Sequence[Needle], depths: Sequence[float]) -> tuple[str, list[int]]:
    """Return the haystack with the needles' sentences in it, and how many of its characters come before each."""
    positions = [nearest_break(haystack, round(depth * len(haystack))) for depth in depths]
    text = haystack
    # The last one goes in first, so that the places of those before it stay where they are
    for position, sentence in sorted(zip(positions, map(Needle.sentence, needles), strict=True), reverse=True):
        before, after = text[:position], text[position:]
        left = "" if not before or before[-1].isspace() else " "
        right = "" if not after or after[0].isspace() else " "
        text = f"{before}{left}{sentence}{right}{after}"
    return text, positions
