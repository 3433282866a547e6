import numpy as np
import pytest

from needles.sample import Sample, check_count, check_depth


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


def test_prompt_and_generated_tokens_are_no_more_than_the_length() -> None:
    assert sample().depth is None
    assert sample(length=9).length == 9  # as in line retrieval, where no record need fit exactly
    with pytest.raises(AssertionError):
        sample(length=7)


def test_a_sample_without_an_answer_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        sample(answers=())


def test_numbers_that_are_none_and_depths_outside_the_haystack_are_refused() -> None:
    check_count("num_samples", 1)
    for depth in (0.0, 0.5, 1.0):
        check_depth(depth)
    with pytest.raises(ValueError, match=r"^num_samples must be at least 1, got 0\. Ask for one or more\.$"):
        check_count("num_samples", 0)
    for depth in (-0.1, 1.1, float("nan")):
        with pytest.raises(
            ValueError, match=r"^depth must lie between 0 and 1, got .*\. Give a share of the haystack\.$"
        ):
            check_depth(depth)
