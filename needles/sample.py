"""Something that a model must answer: a prompt, and what its answer has to hold."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A prompt, and the strings that belong in the text generated for it.

    Prompt and generated text together have exactly the length asked for, in every task but `line_retrieval`: where all
    lines have equally many tokens, no record need fit exactly, and the prompt has up to a line less.
    """

    task: str
    """Which task it belongs to: "niah_single_1", "passkey", ..."""

    id: str
    """Unique within its task and length."""

    token_ids: npt.NDArray[np.int32] = field(compare=False, repr=False)
    """The whole prompt, special tokens and chat template included; shape (num_tokens,), int32, read-only."""

    answers: tuple[str, ...]
    """What must appear in the generated text; at least one."""

    num_generated: int
    """Tokens that may be generated."""

    length: int
    """Tokens asked for; those of the prompt and those that may be generated are no more."""

    depth: float | None = None
    """Where the needle lies, 0..1, where there is one."""

    def __post_init__(self) -> None:
        assert self.answers
        assert len(self.token_ids) + self.num_generated <= self.length
        self.token_ids.setflags(write=False)


def check_count(name: str, number: int) -> None:
    """Refuse a number of samples or tokens that is no number of anything.

    Args:
        name: What errors call it.
        number: At least 1.

    Raises:
        ValueError: `number` is below 1.
    """
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {number}. Ask for one or more.")


def check_depth(depth: float) -> None:
    """Refuse what is no depth.

    Args:
        depth: Share of the haystack before a needle.

    Raises:
        ValueError: `depth` is outside 0..1.
    """
    if not 0 <= depth <= 1:
        raise ValueError(f"depth must lie between 0 and 1, got {depth}. Give a share of the haystack.")
