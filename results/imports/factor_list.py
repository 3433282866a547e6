"""Bare lists of factors: one per line, a line of them for each layer, a JSON list, or a JSON object with two lists."""

from collections.abc import Mapping

from results.imports.imported import Given, Imported, agreed, needed, plain_short
from rope.factor_files import number_lines
from rope.factors import RescaleFactors
from rope.geometry import shown
from rope.temperature import longrope_temperature


def list_of_text(text: str) -> tuple[float, ...]:
    """Return the factors of a text: a number a line, or all in a line, which may stand there once per layer.

    The published code of LongRoPE wrote one line per layer, all alike.

    Args:
        text: Numbers, with white space or commas between those of a line.

    Returns:
        The factors.

    Raises:
        ValueError: A word is no number, lines differ, or there are none.
    """
    rows = [line.replace(",", " ").split() for line in text.splitlines() if line.strip()]
    if not rows:
        raise ValueError("factors must be one number per line at least, got an empty file. Was it cut off?")
    if all(len(row) == 1 for row in rows):
        return tuple(number_lines(text.replace(",", " ")))
    if any(row != rows[0] for row in rows):
        raise ValueError(
            f"factors must be one number per line or the same in every line, got {len(rows)} lines that differ. One "
            "list must serve all layers: give one line."
        )
    return tuple(number_lines("\n".join(rows[0])))


def numbers_of_json(name: str, value: object) -> tuple[float, ...]:
    """Return a JSON list of numbers; what numbers factors may be is for the factors to say.

    Args:
        name: What the list is called.
        value: What JSON gave.

    Raises:
        ValueError: It is no list of numbers.
    """
    is_list = isinstance(value, list) and all(isinstance(entry, int | float) for entry in value)
    if not is_list or not value:
        raise ValueError(f"{name} must be a list of numbers, got {shown(value)}. Give one per frequency pair.")
    return tuple(value)  # type: ignore[arg-type]


def import_lists(lists: Mapping[str, object], given: Given) -> Imported:
    """Return the factors of `{"long_factor": [...], "short_factor": [...]}`, the second one optional.

    Args:
        lists: The object; other entries are refused, since they would be lost.
        given: Model and window.

    Returns:
        The factors.

    Raises:
        ValueError: As `import_list`; or an entry is unknown.
    """
    unknown = sorted(lists.keys() - {"long_factor", "short_factor"})
    if unknown:
        raise ValueError(
            f"an object of lists must have long_factor and short_factor only, got {', '.join(unknown)}. Give a whole "
            "config.json, or leave them out."
        )
    long = numbers_of_json("long_factor", lists["long_factor"])
    imported = import_list(long, given)
    if "short_factor" not in lists:
        return imported
    short = numbers_of_json("short_factor", lists["short_factor"])
    check_length("short_factor", short, imported.factors.rotary_dim)
    return import_list(long, given, short=plain_short(short))


def import_list(values: tuple[float, ...], given: Given, *, short: tuple[float, ...] | None = None) -> Imported:
    """Return a bare list as factors, at temperature 1 unless its user says another.

    Args:
        values: Factors, fastest pair first.
        given: Model and window; the rotary dimension is twice the list's length where it is not said.
        short: Factors inside the original window; None for the model's own rotation.

    Returns:
        The factors.

    Raises:
        ValueError: The base or a window is not said, or the list has another length than the rotary dimension has
            pairs, or holds what is no factor.
    """
    rotary_dim = 2 * len(values) if given.rotary_dim is None else given.rotary_dim
    check_length("the list", values, rotary_dim)
    original_length = int(needed("original-length", given.original_length))
    factors = RescaleFactors(
        values=values,
        rotary_dim=rotary_dim,
        base=needed("base", agreed("base", None, given.base)),
        original_length=original_length,
        target_length=int(needed("target-length", given.target_length)),
        short_values=short,
        method="imported",
    )
    notes: tuple[str, ...] = ()
    if given.attention_temperature is None and factors.scale > 1 and original_length > 1:
        usual = longrope_temperature(factors.scale, original_length)
        notes = (
            "A list says no attention temperature, and 1 is taken; LongRoPE's engines would take "
            f"{usual:.6g} (--attention-temperature longrope).",
        )
    return Imported(factors=factors, form="a list of factors", notes=notes)


def check_length(name: str, values: tuple[float, ...], rotary_dim: int) -> None:
    """Refuse a list that does not have one factor per frequency pair.

    Args:
        name: What the list is called.
        values: The list.
        rotary_dim: Rotated dimensions per head.

    Raises:
        ValueError: It is longer or shorter.
    """
    if len(values) != rotary_dim // 2:
        raise ValueError(
            f"{name} must have {rotary_dim // 2} entries (rotary_dim {rotary_dim} / 2), got {len(values)}. Was it made "
            "for another model?"
        )
