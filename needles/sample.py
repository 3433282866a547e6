"""Something that a model must answer: a prompt, and what its answer has to hold."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A prompt of an exact length, and the strings that belong in the text generated for it."""

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
    """Tokens asked for: those of the prompt and those that may be generated together, exactly."""

    depth: float | None = None
    """Where the needle lies, 0..1, where there is one."""

    def __post_init__(self) -> None:
        assert self.answers
        assert len(self.token_ids) + self.num_generated == self.length
        self.token_ids.setflags(write=False)
