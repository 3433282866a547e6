"""What each task hands over: a message that can be written at any size, and its answers."""

from collections.abc import Callable
from typing import NamedTuple


class Message(NamedTuple):
    """A task as text, without what stands round it."""

    text: str

    depth: float | None = None
    """Share of the haystack before the needle that is asked for, 0..1, where there is one."""


class Puzzle(NamedTuple):
    """One sample before its size is chosen."""

    write: Callable[[int, str], Message]
    """From a size, and an ending of the context that fills up what is missing, to the message."""

    smallest: int
    """The smallest size. What a size counts is the task's own: characters, words."""

    largest: int
    """The largest size; at least `smallest`."""

    answer_prefix: str
    """How the answer begins."""

    answers: tuple[str, ...]
    """What must appear in the generated text."""

    evidence: tuple[str, ...]
    """What the prompt's ids must still hold when they are read back."""

    material: str
    """What a size is taken from, as errors call it."""
