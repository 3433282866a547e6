"""Asks one engine for its rotation of every input, and compares each with the one that it should have."""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from results.export.engine import Mode
from results.parity import UNVERIFIED, ParityRow
from rope.factors import RescaleFactors
from rope.identity import none_factors
from workers.parity.comparison import Window, compare, window_of
from workers.parity.engines import ParityEngine, Setting
from workers.parity.packages import EnginePackage, installed_package, unzipped_packages
from workers.parity.probe import Probe, Rotation
from workers.parity.process import EngineError, rotations
from workers.parity.transformers_rotation import own_rotation


class Windows(NamedTuple):
    """What an engine should rotate by, up to the original length and beyond it."""

    short: Window
    """Up to the original length."""
    long: Window
    """Beyond it; of inputs inside the original length too where the export is pinned."""
    is_pinned: bool
    """Whether the long factors serve both."""

    def wanted(self, num_tokens: int, original_length: int) -> Window:
        """Return the rotation of an input.

        Args:
            num_tokens: Its length.
            original_length: The original window, tokens.
        """
        return self.short if num_tokens <= original_length and not self.is_pinned else self.long


def windows(factors: RescaleFactors, mode: Mode, config: Mapping[str, object], *, scaling: str) -> Windows:
    """Return what an engine should rotate by.

    Args:
        factors: What is exported.
        mode: dual or pinned.
        config: The model's config.json as it was before.
        scaling: The scaling that the model was saved with; "default" is none.

    Returns:
        The long factors; and short ones that the factors bring, or else the model's own rotation, which is asked of
        transformers where it is scaled.
    """
    long = window_of("long", factors)
    if factors.short is not None:
        short = window_of("short", factors.short)
    elif scaling == "default":
        plain = none_factors(
            factors.rotary_dim,
            factors.base,
            original_length=factors.original_length,
            target_length=factors.target_length,
        )
        short = window_of("short", plain)
    else:
        inv_freq, temperature = own_rotation(config, factors.original_length)
        short = Window("short", np.array(inv_freq, dtype=np.float64), temperature)
    return Windows(short, long, mode == "pinned")


def find_packages(engine: ParityEngine, folder: Path | None) -> list[EnginePackage]:
    """Return an engine's packages: the installed one, then those that were unzipped.

    Args:
        engine: The engine.
        folder: Folder of unzipped packages; None for none.
    """
    installed = installed_package(engine.package, engine.distribution)
    unzipped = [] if folder is None else unzipped_packages(engine.package, engine.distribution, folder)
    return ([] if installed is None else [installed]) + unzipped


def verify_engine(
    name: str,
    engine: ParityEngine,
    package: EnginePackage,
    factors: RescaleFactors,
    *,
    config: Mapping[str, object],
    overrides: Mapping[str, object],
    expected: Windows,
    folder: Path | None,
) -> list[ParityRow]:
    """Return what each input of one engine showed.

    Args:
        name, engine, package: The engine, and where it was found.
        factors: What was exported.
        config: config.json as the engine finds it.
        overrides: What its command line replaces in it.
        expected: What it should rotate by.
        folder: Folder of unzipped packages, for what the engine's code imports.

    Returns:
        One row per input; one with the reason where the engine's code could not be run.
    """
    exported_length = _exported_length({**config, **overrides}, factors.target_length)
    rows = []
    for setting in engine.settings(factors, exported_length):
        inputs = tuple(_positions(num_tokens, factors) for num_tokens in setting.num_tokens)
        probe = Probe(
            root=str(package.root),
            config=config,
            overrides=overrides,
            rotary_dim=factors.rotary_dim,
            server_length=setting.server_length,
            inputs=inputs,
        )
        try:
            found = _asked(engine, package, folder, probe)
        except EngineError as error:
            row = ParityRow(engine=name, version=package.version, setting=setting.label, verdict=f"{UNVERIFIED}{error}")
            rows.append(row)
            continue
        rows += [
            _row(name, engine, package, setting, factors, expected, positions, rotation)
            for positions, rotation in sorted(zip(inputs, found, strict=True))
        ]
    return rows


def _asked(engine: ParityEngine, package: EnginePackage, folder: Path | None, probe: Probe) -> list[Rotation]:
    if not engine.runs_here or _is_unzipped(package, folder):
        paths = _search_paths(engine.imports, package, folder)
        others = _search_paths((*engine.imports, *engine.beside), package, folder)
        try:
            return rotations(engine.module, probe, search_paths=paths)
        except EngineError:
            if others == paths:
                raise
            return rotations(engine.module, probe, search_paths=others)
    try:
        found: list[Rotation] = importlib.import_module(engine.module).rotate(probe)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EngineError(f"{type(error).__name__}: {' '.join(str(error).split())}") from error
    return found


def _row(
    name: str,
    engine: ParityEngine,
    package: EnginePackage,
    setting: Setting,
    factors: RescaleFactors,
    expected: Windows,
    positions: Sequence[int],
    rotation: Rotation,
) -> ParityRow:
    num_tokens = positions[-1] + 1
    wanted = expected.wanted(num_tokens, factors.original_length)
    other = expected.short if wanted is expected.long else expected.long
    found = compare(
        rotation,
        positions,
        wanted=wanted,
        other=other,
        base=factors.base,
        reasons=engine.reasons,
    )
    return ParityRow(
        engine=name,
        version=package.version,
        setting=setting.label,
        num_tokens=num_tokens,
        factors=found.factors,
        inv_freq_difference=found.inv_freq_difference,
        rotation_difference=found.rotation_difference,
        verdict=found.verdict,
    )


def _positions(num_tokens: int, factors: RescaleFactors) -> tuple[int, ...]:
    original = factors.original_length
    wanted = {0, 1, original - 1, original, original + 1, num_tokens - 1}
    return tuple(sorted(position for position in wanted if position < num_tokens))


def _is_unzipped(package: EnginePackage, folder: Path | None) -> bool:
    return folder is not None and package.root.is_relative_to(folder)


def _search_paths(names: Sequence[str], package: EnginePackage, folder: Path | None) -> list[Path]:
    """Return where an unzipped engine's imports are found before those that are installed."""
    if folder is None or not _is_unzipped(package, folder):
        return []
    places = [package.search_path, folder, *sorted(path for path in folder.iterdir() if path.is_dir())]
    found = [next((place for place in places if _holds_files(place / name)), None) for name in names]
    return list(dict.fromkeys(place for place in found if place is not None))


def _holds_files(package: Path) -> bool:
    """Return whether a folder is a package, and not one of the same name that a wheel was unzipped into."""
    return package.is_dir() and any(
        path.is_file() and path.suffix in (".py", ".so", ".pyd") for path in package.iterdir()
    )


def _exported_length(config: Mapping[str, object], otherwise: int) -> int:
    length = config.get("max_position_embeddings")
    return length if isinstance(length, int) else otherwise
