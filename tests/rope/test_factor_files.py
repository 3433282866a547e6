"""What a file of factors may hold, and what is said when it holds something else."""

import re
from pathlib import Path

import numpy as np
import pytest

from rope.factor_files import file_text, number_lines, parsed_json


def test_numbers_are_read_as_numpy_wrote_them(tmp_path: Path) -> None:
    values = np.array([1.0, 1.1, 16 ** (1 / 3), 26.05])
    np.savetxt(tmp_path / "factors.csv", values)
    assert number_lines(file_text(tmp_path / "factors.csv")) == values.tolist()


def test_blank_lines_and_a_byte_order_mark_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "factors.csv").write_bytes(b"\xef\xbb\xbf1.5\r\n\r\n 2 \r\n")
    assert number_lines(file_text(tmp_path / "factors.csv")) == [1.5, 2.0]


def test_a_line_that_is_no_number_is_named() -> None:
    message = (
        "factors must be JSON or one number per line, got '1.1, 1.2' in line 2. "
        "Write one factor per line and nothing else."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        number_lines("1.0\n1.1, 1.2\n")


@pytest.mark.parametrize("text", ["", "[1.0, 2.0", "[1.0,]", "[" * 100_000, "[" + "9" * 5000 + "]"])
def test_a_text_that_is_no_json_is_refused_on_one_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"^factors must be JSON, got text that is not: .* Was the file cut off\?$"):
        parsed_json(text)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "none.json"
    message = f"{path}: factors must be in a readable file, got: No such file or directory. Check the path."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        file_text(path)


def test_bytes_that_are_no_text_are_refused_with_their_offset(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"1.0\n\xff\xfe")
    message = f"{path}: factors must be UTF-8 text, got byte 0xff at offset 4. Is it a file of weights?"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        file_text(path)
