"""The run directory: everything that one run leaves, and never anything of another run."""

import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from results.atomic_file import is_leftover, write_text
from results.run_lock import LOCK

CONFIG = "config.yaml"
"""The resolved configuration; a folder with this file and its hash is a run."""
CONFIG_HASH = "config.sha256"
"""Hash of the configuration file, as `sha256sum --check` reads it."""


@dataclass(frozen=True)
class RunDirectory:
    """A folder that holds one run; `create` makes it or takes it up again."""

    path: Path
    """The folder, absolute."""
    config_sha256: str
    """SHA-256 of config.yaml, 64 hexadecimal digits: equal hashes, equal configurations."""

    @classmethod
    def create(
        cls,
        path: str | Path,
        resolved_config: Mapping[str, object],
        *,
        resume: bool,
        may_change: Collection[str] = (),
    ) -> "RunDirectory":
        """Return a new run directory with its configuration in it, or an existing one of the same configuration.

        Args:
            path: Folder; made with its parents where it is missing. An existing one must be free, see `check_free`,
                or hold the run to resume.
            resolved_config: Every setting of the run, nested mappings of what YAML can hold.
            resume: Take up the run that the folder holds, instead of starting one.
            may_change: Keys, with dots between the levels, that may differ from the run's when it is taken up; a key
                stands for all below it. The file keeps the values of the start.

        Returns:
            The run directory; nothing in an existing run was changed.

        Raises:
            ValueError: The folder holds a run and resume is off; it holds none and resume is on; the run in it has
                another configuration or an unreadable one; it holds other files; or it cannot be made or written.
        """
        folder = _normal(path)
        try:
            if resume:
                return cls._resumed(folder, resolved_config, may_change)
            return cls._started(folder, resolved_config)
        except OSError as error:
            raise ValueError(
                f"run directory {folder} must be a folder that can be written to, got: {error.strerror}. "
                "Choose another with --run-dir."
            ) from error

    @staticmethod
    def holds_run(path: str | Path) -> bool:
        """Return whether a folder holds a run, of whatever configuration.

        Args:
            path: Folder; one that is missing holds none.
        """
        folder = _normal(path)
        return (folder / CONFIG).is_file() and (folder / CONFIG_HASH).is_file()

    @classmethod
    def read_config(cls, path: str | Path) -> Mapping[str, object]:
        """Return the resolved configuration of the run in a folder.

        Args:
            path: Run directory.

        Returns:
            Every setting of the run's start, nested mappings of what YAML can hold.

        Raises:
            ValueError: The folder holds no run, or its configuration is damaged.
            OSError: The configuration may not be read.
        """
        folder = _normal(path)
        if not cls.holds_run(folder):
            raise ValueError(
                f"run directory {folder} must hold a run to resume, got none. "
                "Leave out --resume to start one there, or give the run's folder with --run-dir."
            )
        return _read_config(folder / CONFIG)

    @staticmethod
    def check_free(path: str | Path) -> None:
        """Refuse a folder in which no run can be started, before hours were spent; nothing is written.

        Args:
            path: Folder; missing, or empty but for the lock of a driver and what a start that was killed leaves:
                temporary files, and a configuration without its hash, which the next start replaces.

        Raises:
            ValueError: The folder holds a run or other files, or is no folder.
            OSError: The folder may not be read.
        """
        folder = _normal(path)
        if RunDirectory.holds_run(folder):
            raise ValueError(
                f"run directory {folder} must be new or empty, got one that already holds a run. "
                "Choose another folder with --run-dir."
            )
        if folder.is_dir() and not all(_may_be_started_over(file) for file in folder.iterdir()):
            raise ValueError(
                f"run directory {folder} must be new or empty, got one with other files in it. "
                "Choose another folder with --run-dir."
            )
        if folder.exists() and not folder.is_dir():
            raise ValueError(
                f"run directory {folder} must be a folder that can be written to, got: File exists. "
                "Choose another with --run-dir."
            )

    @classmethod
    def _started(cls, folder: Path, resolved_config: Mapping[str, object]) -> "RunDirectory":
        cls.check_free(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = _as_yaml(resolved_config)
        config_sha256 = _sha256(config.encode())
        write_text(folder / CONFIG, config)
        write_text(folder / CONFIG_HASH, f"{config_sha256}  {CONFIG}\n")
        return cls(folder, config_sha256)

    @classmethod
    def _resumed(
        cls, folder: Path, resolved_config: Mapping[str, object], may_change: Collection[str]
    ) -> "RunDirectory":
        before = cls.read_config(folder)
        changed = [
            key
            for key in _changed_keys(before, yaml.safe_load(_as_yaml(resolved_config)))
            if not any(key == free or key.startswith(f"{free}.") for free in may_change)
        ]
        if changed:
            raise ValueError(
                f"a resumed run must keep its configuration, got another value of {', '.join(changed)} than "
                f"{folder / CONFIG} has. Set it as it was, or choose another folder with --run-dir."
            )
        return cls(folder, _sha256((folder / CONFIG).read_bytes()))

    def write_text(self, name: str, text: str) -> Path:
        """Write a text file, whole or not at all; an older one of that name is replaced.

        Args:
            name: File name inside the run directory.
            text: What it will hold.

        Returns:
            The file's path.

        Raises:
            OSError: The folder is not writable, or the disk is full.
        """
        write_text(self.path / name, text)
        return self.path / name

    def write_json(self, name: str, value: object) -> Path:
        """Write a JSON file, whole or not at all; an older one of that name is replaced.

        Args:
            name: File name inside the run directory.
            value: What JSON can hold; NaN is not among it.

        Returns:
            The file's path.

        Raises:
            OSError: The folder is not writable, or the disk is full.
        """
        return self.write_text(name, json.dumps(value, indent=2, allow_nan=False) + "\n")


def _normal(path: str | Path) -> Path:
    """Return a path absolute and without `..`; symbolic links stay, as the user named them."""
    return Path(os.path.abspath(Path(path).expanduser()))  # noqa: PTH100 - resolve() follows links


def _may_be_started_over(file: Path) -> bool:
    if file.name != CONFIG:
        return file.name == LOCK or is_leftover(file)
    try:
        # One that its user wrote, with a comment or laid out in another way, is not ours to replace.
        return _as_yaml(_read_config(file)).encode() == file.read_bytes()
    except ValueError:
        return False


def _as_yaml(config: Mapping[str, object]) -> str:
    return yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _read_config(path: Path) -> Mapping[str, object]:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be the YAML that the run wrote, got something else. Restore it.") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} must be the YAML that the run wrote, got something else. Restore it.")
    return config


def _changed_keys(one: Mapping[str, object], other: Mapping[str, object]) -> list[str]:
    before, after = dict(_leaves(one)), dict(_leaves(other))
    missing = object()
    return [key for key in sorted(before | after) if before.get(key, missing) != after.get(key, missing)]


def _leaves(config: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
