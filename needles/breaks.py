"""Where a text may be cut: after a sentence or a line."""

import re

_BREAK = re.compile(r"""\n+|[.!?]["')\]]*\s+""")
_SPACE = re.compile(r"\s+")
_REACH = 2_000


def nearest_break(text: str, position: int) -> int:
    """Return the position nearest to the one given at which a sentence or a line has just ended.

    The start of the text counts as a break, its end only where a sentence ends there. Without a break within 2,000
    characters the nearest space serves, and without one the position itself.

    Args:
        text: The text.
        position: 0..len(text).

    Returns:
        0..len(text); what comes before it ends in white space, or is nothing, wherever the text allows it.
    """
    start = max(0, position - _REACH)
    window = text[start : position + _REACH]
    for pattern in (_BREAK, _SPACE):
        breaks = [start + match.end() for match in pattern.finditer(window)]
        if breaks:
            return min([*breaks, 0], key=lambda place: abs(place - position))
    return position
