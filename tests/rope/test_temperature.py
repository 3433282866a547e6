"""Attention temperatures against published ones."""

import math

import pytest

from rope.temperature import (
    attention_temperature,
    longrope_temperature,
    yarn_temperature,
)


@pytest.mark.parametrize(
    ("scale", "original_length", "published"),
    [(16, 8192, 1.1435437497937313), (32, 4096, 1.1902380714238083), (64, 2048, 1.243163121016122)],
)
def test_longrope_temperatures_are_the_published_ones(scale: float, original_length: int, published: float) -> None:
    assert longrope_temperature(scale, original_length) == published


@pytest.mark.parametrize(("scale", "published"), [(16, 1.27726), (32, 1.34657), (64, 1.41589)])
def test_yarn_temperatures_are_the_published_ones(scale: float, published: float) -> None:
    assert round(yarn_temperature(scale), 5) == published


def test_scale_one_needs_no_temperature() -> None:
    assert longrope_temperature(1.0, 8192) == yarn_temperature(1.0) == 1.0


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("none", 1.0),
        ("longrope", math.sqrt(1.5)),
        ("yarn", 1 + 0.1 * math.log(16)),
        (1.25, 1.25),
        ("1.25", 1.25),
        (2, 2.0),
    ],
)
def test_a_choice_is_a_name_or_a_number(choice: str | float, expected: float) -> None:
    # ln 16 / ln 256 is one half
    assert attention_temperature(choice, scale=16.0, original_length=256) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (
            "hot",
            r"^attention temperature must be one of none, longrope, yarn or a number above 0, got 'hot'\. Choose one",
        ),
        ("", r"^attention temperature must be one of none, longrope, yarn or a number above 0, got ''\."),
        (0.0, r"^attention temperature must be a finite number above 0, got 0\.0\."),
        ("-1", r"^attention temperature must be a finite number above 0, got -1\.0\."),
        (math.nan, r"^attention temperature must be a finite number above 0, got nan\."),
        ("inf", r"^attention temperature must be a finite number above 0, got inf\."),
    ],
)
def test_other_choices_are_refused(choice: str | float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attention_temperature(choice, scale=4.0, original_length=512)


def test_a_scale_below_one_and_a_window_of_one_token_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^scale must be at least 1, got 0\.5\. It is target length / original length\."
    ):
        yarn_temperature(0.5)
    with pytest.raises(ValueError, match=r"^scale must be a finite number above 0, got nan\."):
        longrope_temperature(math.nan, 512)
    with pytest.raises(ValueError, match=r"^original_length must be a whole number of at least 2, got 1\."):
        longrope_temperature(4.0, 1)
