"""What stands round the body of a prompt, for base models as it is and for chat models in their own template."""

from dataclasses import dataclass

from needles.chat import parted_message
from needles.tokenizer import Tokenizer, encode

_PLACEHOLDER = "HAYSTACK"


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The text before and after a body that is cut to length."""

    before: str
    """From the start of the prompt to the body."""

    after: str
    """From the body to where the model goes on."""

    add_special_tokens: bool
    """Whether the tokenizer adds its special tokens. False where the text holds them already."""

    def write(self, tokenizer: Tokenizer, body: str) -> list[int]:
        """Return the token ids of the whole prompt.

        Args:
            tokenizer: The model's.
            body: What the frame goes round.
        """
        return encode(tokenizer, f"{self.before}{body}{self.after}", add_special_tokens=self.add_special_tokens)


def build_frame(tokenizer: Tokenizer, task: str, question: str, answer_start: str, *, is_chat: bool) -> Frame:
    """Return a prompt's frame.

    Args:
        tokenizer: The model's.
        task: What is said before the body, with the white space that parts them.
        question: What is asked after it, likewise.
        answer_start: The beginning of the answer, written for the model, with the white space before it; may be empty.
        is_chat: Whether task, body and question are a user's message in the model's chat template, and the beginning
            of the answer is in the model's own turn.

    Raises:
        ValueError: the tokenizer has no chat template, or one that leaves out the user's message.
    """
    if not is_chat:
        return Frame(before=task, after=question + answer_start, add_special_tokens=True)
    before, after = parted_message(tokenizer, f"{task}{_PLACEHOLDER}{question}", _PLACEHOLDER)
    begun = answer_start.lstrip()
    space = "" if not begun or after[-1:].isspace() else " "
    return Frame(before=before, after=f"{after}{space}{begun}", add_special_tokens=False)
