"""A user's message in a model's own chat template, parted where something is to be put into it."""

from needles.tokenizer import Tokenizer


def parted_message(tokenizer: Tokenizer, message: str, place: str) -> tuple[str, str]:
    """Return what stands before and after a place in a user's message, up to where the model's turn begins.

    Args:
        tokenizer: The model's.
        message: What the user says; `place` occurs in it once.
        place: A word that stands for what is put there.

    Returns:
        Text before and after it; both hold the template's special tokens as text.

    Raises:
        ValueError: the tokenizer has no chat template, or one that leaves out the user's message.
    """
    conversation = [{"role": "user", "content": message}]
    try:
        text = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    except ValueError as error:
        raise ValueError(
            "a chat prompt needs a tokenizer with a chat template, got none. Use the base prompt."
        ) from error
    assert isinstance(text, str)
    before, found, after = text.partition(place)
    if not found:
        raise ValueError(
            "the chat template must repeat the user's message, got a text without it. Use the base prompt."
        )
    return before, after
