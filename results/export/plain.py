"""Export for programs of one's own: one factor per line, and JSON with its schema."""

from dataclasses import replace
from importlib import resources

from results.export.engine import Export, Mode, SourceModel
from results.export.lists import exported_lists
from rope.factors import RescaleFactors

SCHEMA = "factors.schema.json"


def export_plain(factors: RescaleFactors, mode: Mode, source: SourceModel | None) -> Export:
    """Return the lists as the published search writes them, and all there is to know as JSON.

    Numbers are written with as many digits as give every bit back. `short_factors.csv` is there where the short window
    has factors of its own.

    Args:
        factors, mode, source: What to export, how, and for which model.

    Raises:
        ValueError: The factors cannot be exported.
    """
    lists = exported_lists(factors, mode, source)
    files = {"long_factors.csv": _lines(lists.long)}
    if lists.short_temperature != 1.0 or any(value != 1.0 for value in lists.short):
        files["short_factors.csv"] = _lines(lists.short)
        factors = replace(factors, short_values=tuple(lists.short), short_attention_temperature=lists.short_temperature)
    files["factors.json"] = factors.to_json()
    files[SCHEMA] = schema_text()
    note = (
        f"factors.json also says the attention temperature {lists.long_temperature!r}, which multiplies cos and sin: "
        "a program that reads the lists alone loses it."
    )
    return Export(files=files, steps=(), notes=(note,) if lists.long_temperature != 1.0 else ())


def schema_text() -> str:
    """Return the JSON Schema of factors.json."""
    return resources.files("rope").joinpath(SCHEMA).read_text(encoding="utf-8")


def _lines(values: list[float]) -> str:
    return "".join(f"{value!r}\n" for value in values)
