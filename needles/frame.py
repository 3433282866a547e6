"""What stands round a message: nothing for a base model, its chat template for a chat model."""

from dataclasses import dataclass

from needles.chat import parted_message
from needles.tokenizer import Tokenizer, encode

_PLACEHOLDER = "MESSAGE"


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The text before a message and between it and the beginning of the answer."""

    before: str
    """From the start of the prompt to the message."""

    after: str
    """From the message to the beginning of the answer."""

    add_special_tokens: bool
    """Whether the tokenizer adds its special tokens. False where the text holds them already."""

    def write(self, message: str, answer_prefix: str) -> str:
        """Return the whole prompt; one space at most stands before the beginning of the answer."""
        prefix = answer_prefix.lstrip() if self.after[-1:].isspace() else answer_prefix
        return f"{self.before}{message}{self.after}{prefix}"

    def encode(self, tokenizer: Tokenizer, message: str, answer_prefix: str) -> list[int]:
        """Return the ids of the whole prompt.

        Args:
            tokenizer: The model's.
            message: What the model is told and asked.
            answer_prefix: How the answer begins, with the white space before it; may be empty.
        """
        text = self.write(message, answer_prefix)
        return encode(tokenizer, text, add_special_tokens=self.add_special_tokens)


BASE_FRAME = Frame(before="", after="", add_special_tokens=True)
"""For base models, and RULER's own template `base`."""


def build_frame(tokenizer: Tokenizer, *, is_chat: bool) -> Frame:
    """Return a base model's frame, or the model's own chat template round one user's message.

    An example that belongs to a task stands in the user's message, as in NVIDIA's newer pipeline for RULER.

    Args:
        tokenizer: The model's.
        is_chat: Whether the message is a user's, and the beginning of the answer in the model's own turn.

    Raises:
        ValueError: the tokenizer has no chat template, or one that leaves out the user's message.
    """
    if not is_chat:
        return BASE_FRAME
    before, after = parted_message(tokenizer, _PLACEHOLDER, _PLACEHOLDER)
    return Frame(before=before, after=after, add_special_tokens=False)
