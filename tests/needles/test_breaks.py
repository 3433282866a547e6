import pytest

from needles.breaks import nearest_break

TEXT = 'One two. "Three four!" Five\nsix seven'


@pytest.mark.parametrize(
    ("position", "before"),
    [
        (0, ""),
        (3, ""),
        (6, "One two. "),
        (15, "One two. "),
        (20, 'One two. "Three four!" '),
        (27, 'One two. "Three four!" Five\n'),
        (len(TEXT), 'One two. "Three four!" Five\n'),
    ],
)
def test_the_nearest_end_of_a_sentence_or_a_line_is_found(position: int, before: str) -> None:
    assert TEXT[: nearest_break(TEXT, position)] == before


def test_a_text_without_sentences_breaks_at_a_space() -> None:
    assert nearest_break("word " * 1_000, 2_502) == 2_500


def test_a_text_without_spaces_breaks_where_it_is_asked_to() -> None:
    assert nearest_break("x" * 100, 37) == 37


def test_a_break_is_the_nearest_of_all_in_a_long_text(book: str) -> None:
    for position in range(0, len(book), 9_973):
        place = nearest_break(book, position)
        assert place == 0 or book[place - 1].isspace()
        assert abs(place - position) < 200
