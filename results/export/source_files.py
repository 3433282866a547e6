"""The files of the model that factors are exported for: read, linked, copied."""

import errno
import json
import shutil
from collections.abc import Collection
from pathlib import Path

from results.atomic_file import replacing


def read_config(path: Path) -> dict[str, object]:
    """Return a config.json.

    Args:
        path: The file.

    Raises:
        ValueError: It cannot be read, or is no JSON object; the message begins with the path.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: the model must have a readable config.json, got: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: config.json must be JSON, got text that is not: {error}. Was it cut off?") from error
    if not isinstance(document, dict):
        raise ValueError(f"{path}: config.json must be a JSON object, got a {type(document).__name__}. Check the file.")
    return document


def other_files(folder: Path, written: Collection[str]) -> list[Path]:
    """Return a model folder's own files: weights, tokenizer, code; no subfolders, and nothing hidden.

    Args:
        folder: The model's.
        written: Names that the export writes itself.
    """
    return sorted(
        path for path in folder.iterdir() if path.is_file() and path.name[0] != "." and path.name not in written
    )


def place(source: Path, target: Path, *, by_link: bool) -> None:
    """Put a file beside the export, whole or not at all.

    A link is a hard one, which outlives the model's folder; on another file system, or where the file's owner is
    another, a symbolic one to its absolute path. Changing a linked file in place changes the model's.

    Args:
        source: File to link to or copy; a symbolic link stands for what it leads to.
        target: Path to make or replace; its folder exists.
        by_link: Whether to link.

    Raises:
        OSError: The folder is not writable, or the disk is full.
    """
    source = source.resolve()
    if not by_link:
        with replacing(target) as temporary:
            shutil.copyfile(source, temporary)
        return
    temporary = target.with_name(f".{target.name}.link")
    temporary.unlink(missing_ok=True)
    try:
        try:
            temporary.hardlink_to(source)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES):
                raise
            temporary.symlink_to(source)
        temporary.replace(target)
    finally:
        # Renaming a hard link onto the same file leaves both names
        temporary.unlink(missing_ok=True)
