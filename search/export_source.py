"""The model that factors are exported for: its files, and whether they fit it."""

from dataclasses import dataclass
from pathlib import Path

from results.export.engine import SourceModel
from results.export.source_files import read_config
from rope.factors import RescaleFactors


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model in the form of transformers."""

    model: SourceModel
    """What an exporter needs."""
    folder: Path
    """Where its files are."""


def read_source(name: str, factors: RescaleFactors) -> Source:
    """Return the model, after a check that the factors are for it.

    Args:
        name: Folder, or hub id in the local cache.
        factors: What is exported.

    Raises:
        ValueError: There is no such model, its config.json is none or nested, it does not rotate alike in all layers,
            or the factors are for another rotation.
    """
    if name.lower().endswith(".gguf"):
        raise ValueError(
            f"--model must be a folder or hub id for this engine, got the GGUF file {name}. Use --to llama.cpp."
        )
    folder = Path(name).expanduser()
    if not folder.is_dir():
        folder = _cached(name)
    config = read_config(folder / "config.json")
    if isinstance(config.get("text_config"), dict):
        raise ValueError(
            f"the model must keep its rotation at the top of config.json, got {name} with a text_config inside it. "
            "Export without --model and put the entries that are written inside its text_config by hand; as overrides: "
            '{"text_config": {...}}.'
        )
    return Source(model=_checked(name, folder, config, factors), folder=folder)


def _cached(name: str) -> Path:
    from transformers.utils.hub import cached_file

    try:
        found = cached_file(name, "config.json", local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"--model must be a folder, or a hub id that is in the local cache, got {name}, which is neither. "
            "Check the path."
        ) from error
    assert found is not None
    return Path(found).parent


def _checked(name: str, folder: Path, config: dict[str, object], factors: RescaleFactors) -> SourceModel:
    from workers.geometry import rope_geometry  # imports transformers: seconds that a typing error should not take
    from workers.model_files import ModelFiles

    geometry = rope_geometry(ModelFiles(str(folder)).config())
    if geometry.by_layer_type:
        raise ValueError(
            f"the model must rotate alike in all layers, got {name}, whose sliding-window layers have a rotation of "
            "their own: no engine reads factors for some layers only."
        )
    if (factors.rotary_dim, factors.base) != (geometry.rotary_dim, geometry.base):
        raise ValueError(
            f"factors must be for rotary_dim {geometry.rotary_dim} and base {geometry.base:g} as the model has them, "
            f"got rotary_dim {factors.rotary_dim} and base {factors.base:g}. Were they made for another model?"
        )
    return SourceModel(
        name=str(folder) if Path(name).expanduser().is_dir() else name,  # commands are printed with it
        config=config,
        model_type=str(config.get("model_type", "")),
        partial_rotary_factor=geometry.partial_rotary_factor,
    )
