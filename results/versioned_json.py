"""JSON of a run directory: strict, so that any reader takes it, and with the version of its schema."""

import json
import math
from collections.abc import Sequence
from typing import Any

VERSION = "schema_version"
"""Key of the version."""


def finite_or_none(value: object) -> object:
    """Return a value as strict JSON can hold it: None for NaN and infinity.

    Args:
        value: Anything.
    """
    return None if isinstance(value, float) and not math.isfinite(value) else value


def parsed(text: str, *, kind: str, versions: Sequence[int]) -> dict[str, Any]:
    """Return the object in a text, without its version.

    Args:
        text: JSON.
        kind: What it is of, for messages.
        versions: The schema versions that it may have, the one that is written last.

    Raises:
        ValueError: text is no JSON, no object, or has another schema version.
    """
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"a {kind} must be JSON, got something else: {error}. Was the file cut?") from error
    found = document.pop(VERSION, None) if isinstance(document, dict) else None
    if found not in versions:
        raise ValueError(
            f"a {kind} must have schema version {' or '.join(map(str, versions))}, got {found}. "
            "Read it with the version of Ropewalk that wrote it."
        )
    return dict(document)
