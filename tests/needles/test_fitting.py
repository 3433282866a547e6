from collections.abc import Callable

import numpy as np
import pytest

from needles.fitting import Draft, NoRoom, fit_haystack

PROMPT_TOKENS = 10


def writer(
    tokens_per_character: list[int], ending_tokens: int = 1, prompt_tokens: int = PROMPT_TOKENS
) -> Callable[[int, str], Draft]:
    """Return documents of 10 tokens, so many more for each character, and some for each full stop."""
    totals = np.concatenate([[0], np.cumsum(tokens_per_character)])

    def write(num_characters: int, ending: str) -> Draft:
        num_tokens = prompt_tokens + int(totals[num_characters]) + ending_tokens * ending.count(".")
        return Draft(num_characters, (0.5,), [0] * num_tokens)

    return write


def test_every_length_from_the_prompt_to_the_whole_text_is_met() -> None:
    tokens = list(np.random.default_rng(0).integers(0, 2, 300))
    for length in range(PROMPT_TOKENS, PROMPT_TOKENS + sum(tokens) + 1):
        draft = fit_haystack(writer(tokens), length, num_characters=300, passage="p")
        assert len(draft.token_ids) == length


def test_texts_of_many_or_few_characters_a_token_are_met_in_few_attempts() -> None:
    for every in (1, 2, 7, 30):
        tokens = [int(index % every == 0) for index in range(200_000)]
        attempts: list[int] = []
        write = writer(tokens)

        def counted(
            num_characters: int, ending: str, write: Callable[[int, str], Draft] = write, made: list[int] = attempts
        ) -> Draft:
            made.append(num_characters)
            return write(num_characters, ending)

        draft = fit_haystack(counted, 5_000, num_characters=200_000, passage="p")
        assert len(draft.token_ids) == 5_000
        assert len(attempts) <= 12


def test_full_stops_fill_up_where_each_character_is_three_tokens() -> None:
    for length in range(40, 60):
        draft = fit_haystack(writer([3] * 100), length, num_characters=100, passage="p")
        assert len(draft.token_ids) == length


def test_a_document_without_any_prompt_is_fitted_too() -> None:
    for length in (0, 1, 50, 100):
        draft = fit_haystack(writer([1] * 100, prompt_tokens=0), length, num_characters=100, passage="p")
        assert len(draft.token_ids) == draft.num_characters == length


def test_a_length_below_the_prompt_is_refused() -> None:
    message = r"length must be at least 10 tokens for the prompt, its needles and their answers, got 9\. Ask for longer"
    with pytest.raises(NoRoom, match=message):
        fit_haystack(writer([1] * 100), 9, num_characters=100, passage="p")


def test_a_text_that_is_too_short_is_refused() -> None:
    message = r"must fill a document of 111 tokens, got 110 with all 100 characters of book\.txt\[0:100\]\. Give a lon"
    with pytest.raises(ValueError, match=message):
        fit_haystack(writer([1] * 100), 111, num_characters=100, passage="book.txt[0:100]")


def test_a_length_that_no_cut_gives_is_refused() -> None:
    message = r"some cut of p must give exactly 21 tokens, got only more or fewer\. Ask for one token more or less"
    with pytest.raises(ValueError, match=message):
        fit_haystack(writer([2] * 100, ending_tokens=2), 21, num_characters=100, passage="p")
