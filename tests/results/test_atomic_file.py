"""Files that are there whole or not at all."""

from pathlib import Path

import pytest

from results.atomic_file import replacing, write_text


def test_text_is_written_as_it_is_in_utf_8(tmp_path: Path) -> None:
    write_text(tmp_path / "note", "λ\r\n")
    assert (tmp_path / "note").read_bytes() == b"\xce\xbb\r\n"


def test_an_older_file_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    write_text(tmp_path / "note", "old and longer")
    write_text(tmp_path / "note", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["note"]
    assert (tmp_path / "note").read_text() == "new"


def test_an_error_on_the_way_leaves_the_older_file(tmp_path: Path) -> None:
    write_text(tmp_path / "note", "old")
    with pytest.raises(UnicodeEncodeError), replacing(tmp_path / "note") as temporary:
        temporary.write_text("half \udc80", encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["note"]
    assert (tmp_path / "note").read_text() == "old"


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="No such file or directory"):
        write_text(tmp_path / "gone" / "note", "text")
