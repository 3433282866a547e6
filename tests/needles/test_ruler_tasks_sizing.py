"""Fitting, on texts whose tokens are counted by hand."""

from collections.abc import Callable

import pytest

from needles.ruler_tasks.sizing import NoFit, TooLong, TooShort, fit_size


def words(per_step: int, *, prompt: int = 7) -> Callable[[int, str], list[int]]:
    """A prompt of seven tokens, so many a size, and one for each full stop of the ending."""
    return lambda size, ending: [0] * (prompt + per_step * size + ending.count("."))


@pytest.mark.parametrize("guess", [0, 1, 5, 93, 1_000, 10**9])
@pytest.mark.parametrize("num_tokens", [7, 8, 9, 100, 101, 102, 3_006, 3_007])
def test_every_number_of_tokens_is_met_from_any_guess(num_tokens: int, guess: int) -> None:
    sized, ending = fit_size(words(3), num_tokens, smallest=0, largest=1_000, guess=guess)
    assert sized.size == (num_tokens - 7) // 3
    assert len(sized.token_ids) == num_tokens
    assert ending.count(".") == (num_tokens - 7) % 3


def test_attempts_are_few_when_tokens_come_in_bursts_and_always_end() -> None:
    attempts: list[int] = []

    def encode(size: int, ending: str) -> list[int]:
        attempts.append(size)
        return [0] * (10 + (size // 1_000) ** 2 + ending.count("."))

    sized, _ = fit_size(encode, 5_003, smallest=0, largest=10**6, guess=256)
    assert sized.size // 1_000 == 70  # 10 + 70^2 = 4,910, and 71^2 is 5,041
    assert len(sized.token_ids) == 5_003
    assert len(attempts) < 120


def test_two_tokens_a_stop_are_met_a_size_earlier() -> None:
    def encode(size: int, ending: str) -> list[int]:
        return [0] * (3 * size + 2 * ending.count("."))

    sized, ending = fit_size(encode, 31, smallest=0, largest=100, guess=4)
    assert 3 * sized.size + 2 * ending.count(".") == 31


def test_a_long_step_behind_a_size_that_stops_cannot_fill_is_filled_from_before_it() -> None:
    def encode(size: int, ending: str) -> list[int]:
        stops = ending.count(".")
        return [0] * (20 + stops if size < 10 else 31 + 2 * stops if size == 10 else 40 + stops)

    sized, ending = fit_size(encode, 32, smallest=0, largest=20, guess=10)
    assert (sized.size, ending.count(".")) == (9, 12)


def test_what_cannot_be_met_says_why() -> None:
    with pytest.raises(TooLong) as too_long:
        fit_size(words(3), 6, smallest=0, largest=10, guess=4)
    assert too_long.value.num_tokens == 7
    with pytest.raises(TooShort) as too_short:
        fit_size(words(3), 38, smallest=0, largest=10, guess=4)
    assert too_short.value.num_tokens == 37
    with pytest.raises(NoFit):
        fit_size(lambda size, ending: [0] * (2 * size), 31, smallest=0, largest=100, guess=4)
