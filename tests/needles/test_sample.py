import numpy as np
import pytest

from needles.sample import Sample


def sample(**changed: object) -> Sample:
    fields: dict[str, object] = {
        "task": "passkey",
        "id": "passkey-8-0",
        "token_ids": np.arange(6, dtype=np.int32),
        "answers": ("12345",),
        "num_generated": 2,
        "length": 8,
    }
    return Sample(**{**fields, **changed})  # type: ignore[arg-type]


def test_the_ids_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        sample().token_ids[0] = 1


def test_prompt_and_generated_tokens_make_the_length() -> None:
    assert sample().depth is None
    with pytest.raises(AssertionError):
        sample(length=9)


def test_a_sample_without_an_answer_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        sample(answers=())
