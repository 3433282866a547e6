"""Finds out what a source is, and imports it."""

from dataclasses import replace
from pathlib import Path

from results.imports.factor_list import import_list, import_lists, list_of_text, numbers_of_json
from results.imports.huggingface_config import import_config
from results.imports.imported import Given, Imported, agreed, completed
from results.imports.published import PREFIX, import_published
from rope.factor_files import file_text, parsed_json
from rope.factors import RescaleFactors


def import_source(source: str, given: Given) -> Imported:
    """Return the factors of a source of any known form; its content tells the form, but for GGUF and published lists.

    Args:
        source: `published:NAME`; a folder with a config.json, or else a factors.json; a .gguf file; or a file with a
            Hugging Face configuration or a part of one, a list of factors (JSON, one per line, or a line per layer),
            an object of two lists, or Ropewalk's own factors.
        given: What the user says beside it.

    Returns:
        The factors, with their critical dimension where the list shows one.

    Raises:
        ValueError: There is no such source, it is of no known form, something that is needed is missing, or the user
            contradicts it; the message begins with the file.
    """
    if source.startswith(PREFIX):
        return completed(_moved(import_published(source.removeprefix(PREFIX)), given), given)
    path = _file(Path(source).expanduser())
    try:
        imported = completed(_import_file(path, given), given)
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(f"{path}: ") else f"{path}: {error}") from error
    named = imported.factors.with_provenance(imported_from=path.name, form=imported.form)
    return replace(imported, factors=named)


def short_list(path: str | Path) -> tuple[float, ...]:
    """Return a list of factors from a file of its own: JSON, or numbers as text.

    Args:
        path: File to read.

    Raises:
        ValueError: It cannot be read or holds no list; the message begins with the path.
    """
    text = file_text(path)
    try:
        return numbers_of_json("the list", parsed_json(text)) if text.lstrip().startswith("[") else list_of_text(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in ("config.json", "factors.json"):
        if (path / name).is_file():
            return path / name
    raise ValueError(f"a folder must hold a config.json or a factors.json, got {path} without. Name a file in it.")


def _import_file(path: Path, given: Given) -> Imported:
    if path.suffix.lower() == ".gguf":
        from results.export.gguf_file import read_gguf_factors  # imports gguf, which only this form needs

        factors = read_gguf_factors(path)
        return _moved(Imported(factors=factors, form="a GGUF file"), given)
    text = file_text(path)
    if text.lstrip().startswith("["):
        return import_list(numbers_of_json("the list", parsed_json(text)), given)
    if not text.lstrip().startswith("{"):
        if path.suffix == ".json":
            parsed_json(text)  # says that it is none
        return import_list(list_of_text(text), given)
    document = parsed_json(text)
    if "schema_version" in document:
        return _moved(Imported(factors=RescaleFactors.from_json(text), form="factors of Ropewalk"), given)
    if "long_factor" in document and not {"rope_type", "type"} & document.keys():
        return import_lists(document, given)
    return import_config(document, given)


def _moved(imported: Imported, given: Given) -> Imported:
    """Return factors that know their model, with the user's windows; base and rotary dimension must agree."""
    factors = imported.factors
    agreed("base", factors.base, given.base)
    agreed("rotary-dim", factors.rotary_dim, given.rotary_dim)
    moved = replace(
        factors,
        original_length=given.original_length or factors.original_length,
        target_length=given.target_length or factors.target_length,
    )
    return replace(imported, factors=moved)
