import numpy as np
import pytest

from needles.needle import Needle, draw_needles
from needles.words import ADJECTIVES, DISTRACTOR_NOUNS, NOUNS


def test_the_sentence_is_the_one_in_the_paper() -> None:
    assert (
        Needle("numerous-kite", "6716097").sentence()
        == "One of the special magic numbers for numerous-kite is: 6716097."
    )


def test_keys_are_adjective_noun_and_values_have_seven_digits() -> None:
    for needle in draw_needles(np.random.default_rng(0), 500):
        adjective, noun = needle.key.split("-")
        assert adjective in ADJECTIVES
        assert noun in NOUNS
        assert 1_000_000 <= int(needle.value) <= 9_999_999
        assert needle.value == str(int(needle.value))


def test_all_keys_and_all_values_of_a_draw_differ() -> None:
    needles = draw_needles(np.random.default_rng(0), 2_000)
    assert len({needle.key for needle in needles}) == len({needle.value for needle in needles}) == 2_000


def test_needles_taken_before_are_not_drawn_again() -> None:
    num_keys = len(ADJECTIVES) * len(NOUNS)
    first = draw_needles(np.random.default_rng(0), num_keys - 10)
    rest = draw_needles(np.random.default_rng(0), 10, taken=first)
    assert len({needle.key for needle in first + rest}) == num_keys
    assert not {needle.value for needle in first} & {needle.value for needle in rest}


def test_the_same_generator_state_draws_the_same_needles_and_another_one_others() -> None:
    assert draw_needles(np.random.default_rng(3), 20) == draw_needles(np.random.default_rng(3), 20)
    assert draw_needles(np.random.default_rng(3), 20) != draw_needles(np.random.default_rng(4), 20)


def test_last_digits_of_values_are_spread_evenly() -> None:
    counts = np.bincount([int(needle.value[-1]) for needle in draw_needles(np.random.default_rng(0), 5_000)])
    # 500 expected of each; five standard deviations of a binomial are 106
    assert np.all(np.abs(counts - 500) < 106)


def test_more_needles_than_keys_are_refused() -> None:
    taken = draw_needles(np.random.default_rng(0), 10)
    with pytest.raises(ValueError, match=r"must be at most 10080, got 10071 after 10 taken ones\. Ask for fewer"):
        draw_needles(np.random.default_rng(0), 10_071, taken=taken)


def test_the_word_lists_hold_different_words() -> None:
    words = [*ADJECTIVES, *NOUNS, *DISTRACTOR_NOUNS]
    assert len(set(words)) == len(words)
    assert len(ADJECTIVES) >= 60
    assert len(NOUNS) >= 100
