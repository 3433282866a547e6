"""What the reference model is trained on: copies that form induction, book text, and needle documents.

Rows are put together from token ids, not from text: training needs thousands a second and no exact canonical form.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerFast

from needles.generated import noise_records
from needles.needle import Needle, draw_needles
from needles.prompts import RULER_BASE

Kind = Literal["copy", "text", "needle"]

ANSWER_WEIGHT = 20.0
"""Loss weight of an answer's tokens; a document has eight of them."""
CONTEXT_WEIGHT = 0.3
"""Loss weight of the other tokens of a needle document."""


class Row(NamedTuple):
    """One training sequence: token ids, and the loss weight of predicting each; shape (length,)."""

    token_ids: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Stage:
    """A part of the training at one sequence length."""

    share: float
    """Fraction of all steps."""
    length: int
    """Tokens of a sequence."""
    kinds: tuple[Kind, ...]
    """Kinds of rows, one kind a step, in turn."""


def stages(window: int) -> tuple[Stage, ...]:
    """Return the curriculum for a window: induction forms on short copies and is stretched from there."""
    return (
        Stage(0.12, 32, ("copy",)),
        Stage(0.08, 64, ("copy",)),
        Stage(0.10, window // 2, ("copy", "text", "needle")),
        Stage(0.70, window, ("needle", "text", "needle", "copy")),
    )


def schedule(window: int, num_steps: int) -> Iterator[tuple[Kind, int]]:
    """Yield the kind and length of every step."""
    for stage in stages(window):
        for step in range(round(stage.share * num_steps)):
            yield stage.kinds[step % len(stage.kinds)], stage.length


class Curriculum:
    """Draws rows; everything random comes from its generator."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, text_ids: npt.NDArray[np.int32], rng: np.random.Generator
    ) -> None:
        self._tokenizer = tokenizer
        self._text_ids = text_ids
        self._rng = rng
        noise = " ".join(text for text, _ in zip(noise_records(), range(20), strict=False))
        self._noise_ids = np.array(self._encode(noise))
        self._needles = self._endless_needles()

    def batch(self, kind: Kind, length: int, num_tokens: int) -> list[Row]:
        """Return rows of one kind and length, as many as make up `num_tokens`."""
        make = {"copy": self._copy, "text": self._text, "needle": self._needle}[kind]
        return [make(length) for _ in range(num_tokens // length)]

    def _copy(self, length: int) -> Row:
        """A random block again and again; what is scored is everything after its first appearance."""
        block_length = int(self._rng.integers(max(4, length // 8), length // 2 + 1))
        block = self._rng.integers(2, len(self._tokenizer), size=block_length)
        token_ids = np.resize(block, length)
        weights = np.ones(length, dtype=np.float32)
        weights[:block_length] = 0
        return Row(token_ids, weights)

    def _text(self, length: int) -> Row:
        token_ids = np.concatenate([[self._tokenizer.bos_token_id], self._haystack(length - 1)])
        return Row(token_ids, np.ones(length, dtype=np.float32))

    def _needle(self, length: int) -> Row:
        """A needle document; some hold up to two more needles, whose keys are not asked for."""
        num_distractors = int(self._rng.integers(0, 3)) if self._rng.random() < 0.4 else 0
        needles = [next(self._needles) for _ in range(1 + num_distractors)]
        before = [self._tokenizer.bos_token_id]
        if self._rng.random() < 0.9:
            before += self._encode(RULER_BASE.before)
        question = self._encode(RULER_BASE.after.replace("{key}", needles[0].key))
        answer = self._encode(f" {needles[0].value}")
        after = question + answer
        sentences = [self._encode(f" {needle.sentence()}") for needle in needles]
        while len(before) + len(after) + sum(map(len, sentences)) > length:
            # the window is too short for all of it: first other needles go, then the task
            if len(sentences) > 1:
                sentences.pop()
            else:
                before = before[:1]
        haystack = self._haystack(length - len(before) - len(after) - sum(map(len, sentences)))
        cuts = np.sort(self._rng.integers(0, len(haystack) + 1, size=len(sentences)))
        pieces = np.split(haystack, cuts)
        order = self._rng.permutation(len(sentences))
        middle = chain.from_iterable((piece, sentences[place]) for piece, place in zip(pieces, order, strict=False))
        token_ids = np.concatenate([before, *middle, pieces[-1], after]).astype(np.int64)
        weights = np.full(length, CONTEXT_WEIGHT, dtype=np.float32)
        weights[-len(answer) :] = ANSWER_WEIGHT
        return Row(token_ids, weights)

    def _haystack(self, length: int) -> npt.NDArray[np.int32]:
        source = self._noise_ids if self._rng.random() < 0.1 else self._text_ids
        start = int(self._rng.integers(0, len(source) - length))
        return source[start : start + length]

    def _endless_needles(self) -> Iterator[Needle]:
        while True:
            yield from draw_needles(self._rng, 2000)

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids
