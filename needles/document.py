"""Documents of an exact token length: a haystack with a needle in it, a question, and the answer at the end."""

from collections.abc import Collection
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np
import numpy.typing as npt

from needles.answer import check_needle, find_answer
from needles.breaks import nearest_break
from needles.corpus import Split, read_split
from needles.fitting import Draft, fit_length
from needles.needle import Needle, draw_needles
from needles.passage import Passage
from needles.prompts import RULER_BASE, Prompt
from needles.tokenizer import Tokenizer, encode

_CHARACTERS_PER_TOKEN = 8  # twice what English text has
_MAX_CHARACTERS_PER_TOKEN = 32
_MAX_CHARACTERS = 64_000_000  # read for one call, however many documents it makes


@dataclass(frozen=True, kw_only=True)
class NeedleDocument:
    """Token ids that end with the answer to their own question, and where they came from."""

    id: str
    """Split, length and the beginning of `sha256`; unique, and the same whenever the content is the same."""

    split: Split
    """Which part of the corpus the haystack was taken from."""

    token_ids: npt.NDArray[np.int32] = field(compare=False, repr=False)
    """Shape (length,), int32, read-only; special tokens included. Compared by `sha256`."""

    answer_start: int
    """Index of the answer's first token; all from there on are scored."""

    depth: float
    """Characters of the haystack before the needle / characters of the haystack, 0..1, as it came out."""

    needle: Needle
    """What is asked for."""

    passage_id: str
    """Records and character ranges of the haystack."""

    passage_sha256: str
    """Hash of the haystack's text, hexadecimal."""

    sha256: str
    """Hash of the token ids as little-endian int32, hexadecimal."""

    @property
    def length(self) -> int:
        """Tokens."""
        return len(self.token_ids)

    @property
    def num_answer_tokens(self) -> int:
        """Tokens scored."""
        return self.length - self.answer_start


def build_documents(
    tokenizer: Tokenizer,
    source: str | Path,
    *,
    split: Split,
    num_documents: int,
    length: int,
    rng: np.random.Generator,
    prompt: Prompt = RULER_BASE,
    taken: Collection[Needle] = (),
    column: str = "text",
) -> list[NeedleDocument]:
    """Return documents of one length with needles of their own and depths spread evenly over 0..1.

    Haystacks begin at places spread evenly over the split's text, which continues at its own start when it ends. They
    overlap where the split is shorter than all of them together; one haystack never repeats itself.

    Args:
        tokenizer: The model's.
        source: The corpus; see `corpus.read_texts`.
        split: The part of the corpus to use. Different ones share no text.
        num_documents: How many; at least 1.
        length: Tokens of each document, special tokens included.
        rng: Draws needles, depths and places; the same state gives the same documents.
        prompt: What stands round the haystack.
        taken: Needles of other documents of the run, which these must not share.
        column: Field or column of the corpus that holds the text.

    Raises:
        ValueError: the corpus cannot be read or is too short, `num_documents` is below 1, `length` is too short for
            the prompt, too few keys are left, or the tokenizer cannot encode a needle.
    """
    if num_documents < 1:
        raise ValueError(f"num_documents must be at least 1, got {num_documents}. Ask for one document or more.")
    needles = draw_needles(rng, num_documents, taken=taken)
    depths = rng.permutation(_stratified(rng, num_documents))
    text = read_split(source, split, num_characters=_characters_to_read(num_documents, length), column=column)
    documents = []
    for needle, depth, place in zip(needles, depths, _stratified(rng, num_documents), strict=True):
        passage = _passage_from(text, place, num_characters=_MAX_CHARACTERS_PER_TOKEN * length)
        documents.append(
            build_document(tokenizer, passage, needle, split=split, length=length, depth=float(depth), prompt=prompt)
        )
    return documents


def build_document(
    tokenizer: Tokenizer,
    passage: Passage,
    needle: Needle,
    *,
    split: Split,
    length: int,
    depth: float,
    prompt: Prompt = RULER_BASE,
) -> NeedleDocument:
    """Return one document; its haystack is the beginning of the passage, as much of it as fits.

    The answer's tokens are found in the finished ids, so a token that holds the answer's first digit and what stands
    before it belongs to the answer.

    Args:
        tokenizer: The model's.
        passage: Text for the haystack.
        needle: What to hide and ask for.
        split: Where the passage comes from.
        length: Tokens, special tokens included.
        depth: Where to put the needle, 0..1; it goes to the nearest end of a sentence or a line.
        prompt: What stands round the haystack.

    Raises:
        ValueError: `depth` is outside 0..1, `length` is too short for the prompt, the passage is too short for
            `length`, or the tokenizer cannot encode the needle.
    """
    if not 0 <= depth <= 1:
        raise ValueError(f"depth must lie between 0 and 1, got {depth}. Give a share of the haystack.")

    def write(num_characters: int, ending: str) -> Draft:
        haystack, position = _with_needle(passage.text[:num_characters], needle, depth)
        text = prompt.write(haystack + ending, needle)
        token_ids = encode(tokenizer, text, add_special_tokens=prompt.add_special_tokens)
        return Draft(num_characters, position / max(num_characters, 1), token_ids)

    draft = fit_length(write, length, num_characters=len(passage.text), passage=passage.id)
    check_needle(tokenizer, draft.token_ids, needle)
    haystack = passage.cut(0, draft.num_characters)
    token_ids = np.array(draft.token_ids, dtype=np.int32)
    token_ids.setflags(write=False)
    digest = sha256(token_ids.astype("<i4").tobytes()).hexdigest()
    return NeedleDocument(
        id=f"{split}-{length}-{digest[:12]}",
        split=split,
        token_ids=token_ids,
        answer_start=find_answer(tokenizer, draft.token_ids, needle),
        depth=draft.depth,
        needle=needle,
        passage_id=haystack.id,
        passage_sha256=haystack.sha256,
        sha256=digest,
    )


def _stratified(rng: np.random.Generator, num: int) -> npt.NDArray[np.float64]:
    """Return one number from each of `num` equal parts of 0..1, in order; shape (num,)."""
    return (np.arange(num) + rng.random(num)) / num


def _characters_to_read(num_documents: int, length: int) -> int:
    wanted = min(num_documents * length * _CHARACTERS_PER_TOKEN, _MAX_CHARACTERS)
    return max(wanted, length * _MAX_CHARACTERS_PER_TOKEN)


def _passage_from(text: Passage, place: float, *, num_characters: int) -> Passage:
    """Return what follows a place, 0..1, of a text, going on from its start at its end."""
    start = nearest_break(text.text, round(place * len(text.text)))
    tail = text.cut(start, start + num_characters)
    return tail + text.cut(0, min(start, num_characters - len(tail.text)))


def _with_needle(haystack: str, needle: Needle, depth: float) -> tuple[str, int]:
    """Return the haystack with the needle's sentence in it, and the number of characters before the sentence."""
    position = nearest_break(haystack, round(depth * len(haystack)))
    before, after = haystack[:position], haystack[position:]
    left = "" if not before or before[-1].isspace() else " "
    right = "" if not after or after[0].isspace() else " "
    return f"{before}{left}{needle.sentence()}{right}{after}", position
