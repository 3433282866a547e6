"""Bare lists: the published forms, and what is said of others."""

import re

import pytest

from results.imports.factor_list import import_list, import_lists, list_of_text, numbers_of_json
from results.imports.imported import Given

GIVEN = Given(base=1e4, original_length=512, target_length=2048)


def test_numbers_stand_one_per_line() -> None:
    assert list_of_text("1.000000000000000000e+00\n\n 2.5 \r\n1e1\n") == (1.0, 2.5, 10.0)


def test_numbers_in_one_line_and_the_same_line_per_layer_are_one_list() -> None:
    for text in ("1 1.5 2\n", "1, 1.5, 2", "1,1.5,2\n" * 32, "1 1.5 2\n1  1.5  2"):
        assert list_of_text(text) == (1.0, 1.5, 2.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "factors must be one number per line at least, got an empty file. Was it cut off?"),
        ("1 2\n1 3\n", "factors must be one number per line or the same in every line, got 2 lines that differ. "),
        ("1\n1 2\n", "factors must be one number per line or the same in every line, got 2 lines that differ. "),
        ("1\nlambda\n", "factors must be JSON or one number per line, got 'lambda' in line 2. "),
    ],
)
def test_a_text_of_another_form_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        list_of_text(text)


@pytest.mark.parametrize("value", [[], {}, "1", [1, "2"], None, [[1.0]]])
def test_json_that_is_no_list_of_numbers_is_refused(value: object) -> None:
    with pytest.raises(
        ValueError, match=r"^long_factor must be a list of numbers, got .*\. Give one per frequency pair"
    ):
        numbers_of_json("long_factor", value)


def test_a_list_says_its_rotary_dim_and_no_temperature() -> None:
    imported = import_list((1.0, 2.0, 3.0), GIVEN)
    assert imported.factors.rotary_dim == 6
    assert imported.factors.attention_temperature == 1.0
    # sqrt(1 + ln 4 / ln 512), the root of 11/9
    assert "1 is taken; LongRoPE's engines would take 1.10554" in imported.notes[0]


def test_two_lists_are_for_both_windows() -> None:
    factors = import_lists({"long_factor": [1.0, 4.0], "short_factor": [1.0, 2.0]}, GIVEN).factors
    assert (factors.values, factors.short_values) == ((1.0, 4.0), (1.0, 2.0))
    assert import_lists({"long_factor": [1.0, 4.0], "short_factor": [1, 1]}, GIVEN).factors.short_values is None
    assert import_lists({"long_factor": [1.0, 4.0]}, GIVEN).factors.short_values is None


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("base", "the base must be known, got a source that is silent. Give --base."),
        ("original_length", "the original length must be known, got a source that is silent. Give --original-length."),
        ("target_length", "the target length must be known, got a source that is silent. Give --target-length."),
    ],
)
def test_a_list_without_its_model_is_refused(missing: str, message: str) -> None:
    known = {"base": 1e4, "original_length": 512, "target_length": 2048}
    del known[missing]
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        import_list((1.0, 2.0), Given(**known))  # type: ignore[arg-type]


def test_a_list_of_another_length_is_refused() -> None:
    given = Given(base=1e4, original_length=512, target_length=2048, rotary_dim=8)
    with pytest.raises(
        ValueError, match=r"^the list must have 4 entries \(rotary_dim 8 / 2\), got 2\. Was it made for"
    ):
        import_list((1.0, 2.0), given)
    with pytest.raises(
        ValueError, match=r"^short_factor must have 2 entries \(rotary_dim 4 / 2\), got 1\. Was it made"
    ):
        import_lists({"long_factor": [1.0, 2.0], "short_factor": [1.0]}, GIVEN)


def test_other_entries_beside_two_lists_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^an object of lists must have long_factor and short_factor only, got extra\."
    ):
        import_lists({"long_factor": [1.0, 2.0], "extra": 1}, GIVEN)
