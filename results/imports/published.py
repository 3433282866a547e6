"""Published lists by name: data that comes with the project, each with its source and licence."""

import difflib
from importlib import resources

from results.imports.imported import Imported
from rope.factors import RescaleFactors

PREFIX = "published:"
"""What a source begins with that is the name of a published list."""


def published_names() -> list[str]:
    """Return the names of all published lists, sorted."""
    folder = resources.files("rope") / "published"
    return sorted(file.name.removesuffix(".json") for file in folder.iterdir() if file.name.endswith(".json"))


def import_published(name: str) -> Imported:
    """Return a published list with everything that was published with it.

    Args:
        name: One of `published_names`.

    Returns:
        The factors; model, source and licence are in their provenance.

    Raises:
        ValueError: There is none of that name; the message has the nearest ones.
    """
    names = published_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names
        raise ValueError(
            f"a published list must be one of {len(names)} known ones, got {name!r}. Did you mean {', '.join(near)}?"
        )
    text = (resources.files("rope") / "published" / f"{name}.json").read_text(encoding="utf-8")
    factors = RescaleFactors.from_json(text)
    facts = factors.provenance
    notes = (
        f"Model: {facts['model']}.",
        f"Source: {facts['source']}. Licence: {facts['licence']}.",
        f"Temperature: {facts['temperature']}.",
    )
    return Imported(factors=factors, form="a published list", notes=notes)
