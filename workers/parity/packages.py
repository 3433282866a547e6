"""Where an engine's package lies, without importing it: installed, or in a folder into which wheels were unzipped."""

import importlib.metadata
import importlib.util
import re
from pathlib import Path
from typing import NamedTuple


class EnginePackage(NamedTuple):
    """A package that was found."""

    root: Path
    """Folder that holds its `__init__.py`."""
    version: str
    """Its version; "unknown" where its files do not say."""

    @property
    def search_path(self) -> Path:
        """Folder from which it is imported."""
        return self.root.parent


def installed_package(name: str, distribution: str) -> EnginePackage | None:
    """Return an installed package; None where there is none.

    Args:
        name: What is imported.
        distribution: What pip calls it.

    Returns:
        Where it lies.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        return None
    try:
        version = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        version = _written_version(Path(spec.origin).parent)
    return EnginePackage(Path(spec.origin).parent, version)


def unzipped_packages(name: str, distribution: str, folder: Path) -> list[EnginePackage]:
    """Return the packages of one name in a folder of unzipped wheels, or in a folder of such folders.

    Args:
        name: What is imported.
        distribution: What pip calls it.
        folder: Where `python -m zipfile -e WHEEL FOLDER` or `pip install --no-deps --target FOLDER` put them.

    Returns:
        Where they lie, in the order of their paths.
    """
    places = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]
    roots = [place / name for place in places if (place / name / "__init__.py").is_file()]
    return [EnginePackage(root, _unzipped_version(root, distribution)) for root in roots]


def _unzipped_version(root: Path, distribution: str) -> str:
    for found in importlib.metadata.distributions(path=[str(root.parent)]):
        if re.sub(r"[-_.]+", "-", found.metadata["Name"] or "").lower() == distribution:
            return found.version
    return _written_version(root)


def _written_version(root: Path) -> str:
    for name in ("_version.py", "version.py", "__init__.py"):
        path = root / name
        if path.is_file():
            match = re.search(
                r"^_*version_*(?::[^=]+)?\s*(?:=\s*\w+\s*)?=\s*[\"']([^\"']+)", path.read_text("utf-8"), re.M
            )
            if match:
                return match[1]
    return "unknown"
