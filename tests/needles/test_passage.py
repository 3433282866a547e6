from hashlib import sha256

from needles.passage import Passage, Piece

PASSAGE = Passage((Piece("a", 10, "hello\n"), Piece("b", 0, "my\n"), Piece("c", 5, "world\n")))


def test_the_text_is_all_pieces_and_the_hash_is_the_hash_of_the_text() -> None:
    assert PASSAGE.text == "hello\nmy\nworld\n"
    assert PASSAGE.sha256 == sha256(b"hello\nmy\nworld\n").hexdigest()


def test_a_cut_has_the_text_of_a_slice() -> None:
    num_characters = len(PASSAGE.text)
    for start in range(num_characters + 1):
        for end in range(start, num_characters + 3):
            assert PASSAGE.cut(start, end).text == PASSAGE.text[start:end]


def test_the_id_names_records_and_ranges_of_characters() -> None:
    assert PASSAGE.id == "a[10:16]..c[5:11]"
    assert PASSAGE.cut(2, 11).id == "a[12:16]..c[5:7]"
    assert PASSAGE.cut(7, 8).id == "b[1:2]"
    assert PASSAGE.cut(3, 3).id == "an empty passage"


def test_passages_are_joined_in_order() -> None:
    assert (PASSAGE.cut(9, 15) + PASSAGE.cut(0, 3)).text == "world\nhel"
