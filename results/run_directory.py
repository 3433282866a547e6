"""The run directory: everything that one run leaves, and never anything of another run."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from results.atomic_file import write_text

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
    def create(cls, path: str | Path, resolved_config: Mapping[str, object], *, resume: bool) -> "RunDirectory":
        """Return a new run directory with its configuration in it, or an existing one of the same configuration.

        Args:
            path: Folder; made with its parents where it is missing. An existing one must be empty, or hold the run
                to resume.
            resolved_config: Every setting of the run, nested mappings of what YAML can hold.
            resume: Take up the run that the folder holds, instead of starting one.

        Returns:
            The run directory; nothing in an existing run was changed.

        Raises:
            ValueError: The folder holds a run and resume is off; it holds none and resume is on; the run in it has
                another configuration or an unreadable one; it holds other files; or it cannot be made or written.
        """
        folder = Path(path).expanduser().absolute()
        try:
            if resume:
                return cls._resumed(folder, resolved_config)
            return cls._started(folder, resolved_config)
        except OSError as error:
            raise ValueError(
                f"run directory {folder} must be a folder that can be written to, got: {error.strerror}. "
                "Choose another with --run-dir."
            ) from error

    @staticmethod
    def check_free(path: str | Path) -> None:
        """Refuse a folder in which no run can be started, before hours were spent; nothing is written.

        Args:
            path: Folder; missing or empty.

        Raises:
            ValueError: The folder holds a run or other files, or is no folder.
        """
        folder = Path(path).expanduser().absolute()
        if _holds_run(folder):
            raise ValueError(
                f"run directory {folder} must be new or empty, got one that already holds a run. "
                "Choose another folder with --run-dir."
            )
        if folder.is_dir() and any(folder.iterdir()):
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
        config_sha256 = _sha256(config)
        write_text(folder / CONFIG, config)
        write_text(folder / CONFIG_HASH, f"{config_sha256}  {CONFIG}\n")
        return cls(folder, config_sha256)

    @classmethod
    def _resumed(cls, folder: Path, resolved_config: Mapping[str, object]) -> "RunDirectory":
        if not _holds_run(folder):
            raise ValueError(
                f"run directory {folder} must hold a run to resume, got none. "
                "Leave out --resume to start one there, or give the run's folder with --run-dir."
            )
        config = _as_yaml(resolved_config)
        changed = _changed_keys(_read_config(folder / CONFIG), yaml.safe_load(config))
        if changed:
            raise ValueError(
                f"a resumed run must keep its configuration, got another value of {', '.join(changed)} than "
                f"{folder / CONFIG} has. Set it as it was, or choose another folder with --run-dir."
            )
        return cls(folder, _sha256(config))

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


def _holds_run(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and (folder / CONFIG_HASH).is_file()


def _as_yaml(config: Mapping[str, object]) -> str:
    return yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


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
