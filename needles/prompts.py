"""What stands before and after the haystack: the task, the questions, the beginnings of the answers."""

from dataclasses import dataclass

from needles.chat import parted_message
from needles.needle import Needle
from needles.tokenizer import Tokenizer

_TASK = (
    "A special magic number is hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the number afterwards.\n"
)
_QUESTION = "\nWhat is the special magic number for {key} mentioned in the provided text?"
_ANSWER_PREFIX = "The special magic number for {key} mentioned in the provided text is"
_FURTHER = f"{_QUESTION} {_ANSWER_PREFIX}"
_KEY = "{key}"
_PLACE = "HAYSTACK"


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """The text round a haystack. The value itself is written after it, with one space before."""

    name: str
    """What results call it."""

    before: str
    """From the start of the document to the haystack."""

    after: str
    """From the haystack to the first value; {key} stands for the needle's key."""

    add_special_tokens: bool
    """Whether the tokenizer adds its special tokens. False where the text holds them already."""

    def write(self, haystack: str, needle: Needle, *others: Needle) -> str:
        """Return the whole document as text, ending with the last needle's value. The needles are not put in here.

        After the first value come, for each other needle, its question, the beginning of the answer and its value, in
        a chat all in the model's own turn.
        """
        further = (f"{_FURTHER.replace(_KEY, other.key)} {other.value}" for other in others)
        return f"{self.before}{haystack}{self.after.replace(_KEY, needle.key)} {needle.value}{''.join(further)}"


RULER_BASE = Prompt(name="ruler-base", before=_TASK, after=_FURTHER, add_special_tokens=True)
"""For base models. Source: LongRoPE2, arXiv:2502.20082, appendix C, after RULER, arXiv:2404.06654."""


def chat_prompt(tokenizer: Tokenizer) -> Prompt:
    """Return the same task as a user's message in the model's own chat template, the answer begun for the model.

    Raises:
        ValueError: the tokenizer has no chat template, or one that leaves out the user's message.
    """
    before, after = parted_message(tokenizer, f"{_TASK}{_PLACE}{_QUESTION}", _PLACE)
    space = "" if after[-1:].isspace() else " "
    return Prompt(name="ruler-chat", before=before, after=f"{after}{space}{_ANSWER_PREFIX}", add_special_tokens=False)
