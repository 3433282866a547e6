"""`ropewalk import`: reads factors from what others publish and serve, tells what they are, and keeps them."""

import sys
from pathlib import Path

from results.atomic_file import write_text
from results.imports.imported import Given, Imported
from results.imports.source import import_source, short_list
from rope.critical_dimension import critical_dim_candidates
from rope.factors import RescaleFactors
from search.import_config import ImportConfig


def run_import(config: ImportConfig) -> None:
    """Import the factors of a source, write them and print what they are.

    Args:
        config: The import.

    Raises:
        ValueError: The output exists or has no folder; or as `import_source`.
        OSError: The output cannot be written.
    """
    output = Path(config.output).expanduser()
    _check_output(output, force=config.force)
    given = Given(
        original_length=config.original_length,
        target_length=config.target_length,
        base=config.base,
        rotary_dim=config.rotary_dim,
        attention_temperature=config.attention_temperature,
        short_values=None if config.short_list is None else short_list(config.short_list),
    )
    imported = import_source(config.source, given)
    write_text(output, imported.factors.to_json())
    sys.stdout.write(described(imported, config.source, output))


def described(imported: Imported, source: str, output: Path) -> str:
    """Return what was imported, in aligned lines.

    Args:
        imported: The factors and what to say of them.
        source: As its user named it.
        output: Where they were written.
    """
    factors = imported.factors
    lines = {
        "read": f"{imported.form}: {source}",
        "model": f"rotary_dim {factors.rotary_dim} ({len(factors.values)} frequency pairs), base {factors.base:g}",
        "window": f"{factors.original_length} to {factors.target_length} tokens ({factors.scale:g}x)",
        "factors": _range(factors.values),
        "critical dimension": _critical_dimension(factors),
        "inside the window": _inside(factors),
        "temperature": (
            f"{factors.attention_temperature:.6g} beyond the window, "
            f"{factors.short_attention_temperature:.6g} inside it"
        ),
        "written": str(output),
    }
    width = max(map(len, lines))
    told = [f"{name:<{width}}  {text}" for name, text in lines.items()]
    return "\n".join([*told, *(f"note: {note}" for note in imported.notes)]) + "\n"


def _check_output(output: Path, *, force: bool) -> None:
    if output.is_dir():
        raise ValueError(f"--output must be a file, got {output}, which is a folder. Name a file in it.")
    if output.exists() and not force:
        raise ValueError(f"--output must not exist yet, got {output}, which does. Name another, or give --force.")
    if not output.parent.is_dir():
        raise ValueError(f"--output must lie in a folder that exists, got {output}. Create {output.parent} first.")


def _range(values: tuple[float, ...]) -> str:
    falls = [pair for pair in range(1, len(values)) if values[pair] < values[pair - 1]]
    order = "none below the one before" if not falls else f"not monotone, the first that falls is pair {falls[0]}"
    return f"{min(values):.6g} to {max(values):.6g}, {order}"


def _critical_dimension(factors: RescaleFactors) -> str:
    """Return the critical dimension in words, beside those that the paper would search."""
    searched = critical_dim_candidates(factors.rotary_dim, factors.base, factors.original_length)
    theory = f"theoretical {searched[-1]}, searched from {searched[0]}"
    if factors.critical_dim is None:
        return f"none to be seen in the list ({theory})"
    return f"{factors.critical_dim} ({theory})"


def _inside(factors: RescaleFactors) -> str:
    if factors.short_values is None:
        return "the model's own rotation"
    if factors.short_values == factors.values:
        return "the same factors"
    return f"factors of its own, {_range(factors.short_values)}"
