"""What a file of factors may hold: text in UTF-8, and in it JSON or one number per line."""

import json
from pathlib import Path
from typing import Any

from rope.geometry import shown


def file_text(path: str | Path) -> str:
    """Return the text of a file, without the byte order mark that some spreadsheets write.

    Args:
        path: File to read.

    Returns:
        The text.

    Raises:
        ValueError: The file cannot be read or is not UTF-8; the message begins with the path.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(
            f"{path}: factors must be in a readable file, got: {error.strerror}. Check the path."
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: factors must be UTF-8 text, got byte {error.object[error.start]:#04x} at offset {error.start}. "
            "Is it a file of weights?"
        ) from error


def parsed_json(text: str) -> Any:
    """Return what a JSON text holds; only its form is checked here.

    Args:
        text: JSON.

    Returns:
        Python's dict, list, str, number, truth value or None.

    Raises:
        ValueError: text is no JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"factors must be JSON, got text that is not: {error}. Was the file cut off?") from error


def number_lines(text: str) -> list[float]:
    r"""Return the numbers of a text with one per line, as numpy's savetxt writes them; blank lines are passed over.

    Args:
        text: One number per line.

    Returns:
        The numbers in their order; whether they can be factors is not checked here.

    Raises:
        ValueError: A line is not one number.

    Example:
        >>> number_lines("1.0\n4.000000000000000000e+00\n")
        [1.0, 4.0]
    """
    return [_number(line, number) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]


def _number(line: str, number: int) -> float:
    try:
        return float(line)
    except ValueError as error:
        raise ValueError(
            f"factors must be JSON or one number per line, got {shown(line)} in line {number}. "
            "Write one factor per line and nothing else."
        ) from error
