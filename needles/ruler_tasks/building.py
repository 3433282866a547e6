"""Turns a puzzle into a sample of an exact length."""

from hashlib import sha256

import numpy as np

from needles.frame import Frame
from needles.ruler_tasks.puzzle import Puzzle
from needles.ruler_tasks.sizing import NoFit, Sized, TooLong, TooShort, fit_size
from needles.sample import Sample
from needles.tokenizer import Tokenizer, decode

_FIRST_STEP = 256  # a size that is small enough to try, and large enough to tell the tokens of a size


class Builder:
    """Builds samples of one task and length; it remembers the last size, which is near the next one's."""

    def __init__(self, task: str, tokenizer: Tokenizer, frame: Frame, *, num_generated: int, length: int) -> None:
        self._task = task
        self._tokenizer = tokenizer
        self._frame = frame
        self._num_generated = num_generated
        self._length = length
        self._guess: int | None = None

    def build(self, number: int, puzzle: Puzzle) -> Sample:
        """Return the sample of a puzzle.

        Args:
            number: Unique among the task's samples.
            puzzle: What to write.

        Raises:
            ValueError: the puzzle cannot have the length, or the tokenizer cannot encode it.
        """
        sized, ending = self._fit(puzzle)
        self._guess = sized.size
        self._check_evidence(puzzle, sized.token_ids)
        token_ids = np.array(sized.token_ids, dtype=np.int32)
        digest = sha256(token_ids.astype("<i4").tobytes()).hexdigest()
        return Sample(
            task=self._task,
            id=f"{self._task}-{self._length}-{number:05d}-{digest[:8]}",
            token_ids=token_ids,
            answers=puzzle.answers,
            num_generated=self._num_generated,
            length=self._length,
            depth=puzzle.write(sized.size, ending).depth,
        )

    def _fit(self, puzzle: Puzzle) -> tuple[Sized, str]:
        def ids(size: int, ending: str) -> list[int]:
            return self._frame.encode(self._tokenizer, puzzle.write(size, ending).text, puzzle.answer_prefix)

        num_tokens = self._length - self._num_generated
        guess = puzzle.smallest + _FIRST_STEP if self._guess is None else self._guess
        try:
            return fit_size(ids, num_tokens, smallest=puzzle.smallest, largest=puzzle.largest, guess=guess)
        except TooLong as error:
            raise ValueError(
                f"length must be at least {error.num_tokens + self._num_generated} tokens for this sample of "
                f"{self._task}, {self._num_generated} of them to generate, got {self._length}. "
                "Ask for more, or leave the task out."
            ) from error
        except TooShort as error:
            raise ValueError(
                f"{puzzle.material} must fill the prompt of {self._task} with {num_tokens} tokens, got "
                f"{error.num_tokens} with all of it. Give more text, or a shorter length."
            ) from error
        except NoFit as error:
            raise ValueError(
                f"some size must give {self._task} exactly {num_tokens} tokens, got only more or fewer. "
                "Ask for one token more or less, or give another corpus."
            ) from error

    def _check_evidence(self, puzzle: Puzzle, token_ids: list[int]) -> None:
        """Refuse ids from which what is asked for cannot be read; white space and case are not compared."""
        text = _squeezed(decode(self._tokenizer, token_ids))
        for wanted in puzzle.evidence:
            if _squeezed(wanted) not in text:
                raise ValueError(
                    f"the tokenizer must be able to encode {wanted!r}, got something else back. "
                    "Use a model whose tokenizer covers it."
                )


def _squeezed(text: str) -> str:
    return "".join(text.split()).lower()
