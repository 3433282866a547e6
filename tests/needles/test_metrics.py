import pytest

from needles.metrics import string_match_all, string_match_part, whole_word_match

ANSWERS = ("RPLCK", "KCMCO", "UDGAI", "LBRZR")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" RPLCK, KCMCO, UDGAI and LBRZR.", 1.0),
        (" RPLCK, KCMCO, UDGAI.", 0.75),
        ("rplck", 0.25),  # case does not count
        ("xRPLCKx", 0.25),  # inside a longer word
        ("RPLCK RPLCK RPLCK", 0.25),  # one answer four times is one answer
        ("RPL\nCK", 0.0),
        ("RPL\x00CK", 0.0),  # a control character is a line break
        ("", 0.0),
    ],
)
def test_all_is_the_share_of_the_answers_that_appear(text: str, expected: float) -> None:
    assert string_match_all(text, ANSWERS) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("It was france.", 1.0), ("In Francia, that is France", 1.0), ("Normandy", 0.0), ("Fran ce", 0.0), ("", 0.0)],
)
def test_part_is_whether_any_answer_appears(text: str, expected: float) -> None:
    assert string_match_part(text, ["France", "Francia"]) == expected


@pytest.mark.parametrize(
    ("text", "answers", "expected"),
    [
        (" the benefits of tea.", ["tea"], 1.0),
        (" Tea", ["tea"], 1.0),  # case does not count
        (" instead, a steady team drank tea2", ["tea"], 0.0),  # inside longer words
        (" **tea**, _tea_, tea-time, 'tea'", ["tea"], 1.0),
        ("téa théâtre", ["tea"], 0.0),
        ("éteas teaé", ["tea"], 0.0),  # letters of any alphabet
        (" <23451>.", ["23451"], 1.0),
        (" 123451 and 234510", ["23451"], 0.0),
        (" tea and jazz", ["jazz", "tea", "chess", "ballet"], 0.5),
        (" a+b", ["a.b"], 0.0),  # no pattern
        ("", ["tea"], 0.0),
    ],
)
def test_a_whole_word_is_no_part_of_a_longer_one(text: str, answers: list[str], expected: float) -> None:
    assert whole_word_match(text, answers) == expected


def test_a_control_character_other_than_a_line_break_is_one() -> None:
    assert string_match_all("a\tb", ["a\nb"]) == string_match_part("a\x1fb", ["a\nb"]) == 1.0


@pytest.mark.parametrize("answers", [(), "France"])
def test_answers_must_be_a_list_with_one_at_least(answers: tuple[str, ...] | str) -> None:
    for metric in (string_match_all, string_match_part, whole_word_match):
        with pytest.raises(ValueError, match=r"^answers must be a list with at least one string, got .*\. Give the"):
            metric("France", answers)
