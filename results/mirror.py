"""A mirror: a run's files copied to another folder or an object store, from where the run can be taken up elsewhere."""

import os
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath

import pyarrow as pa
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem

from results.atomic_file import is_leftover, replacing
from results.parts import JOURNAL, PART, TORN
from results.run_directory import CONFIG, CONFIG_HASH
from results.run_lock import LOCK
from results.urls import without_password

_WITHOUT_FOLDERS = ("s3", "gcs", "abfs")
"""Kinds of file systems where a file needs no folder to lie in."""


class Mirror:
    """Copies a run to a folder or URL and back; for one run and one driver.

    Files are read into memory one by one. Nothing runs beside the caller: each method returns when it is done.

    Args:
        url_or_path: Folder, or a URL that Arrow's file systems take: file:///folder,
            s3://bucket/prefix?endpoint_override=host:9000&scheme=http, gs://bucket/prefix, hdfs://host:port/folder.
            Keys and passwords may stand in it; they are in no message.

    Raises:
        ValueError: No file system takes the URL.
    """

    def __init__(self, url_or_path: str | Path) -> None:
        self.name = without_password(str(url_or_path))
        """The URL as it may be shown."""
        self._copied: dict[str, tuple[int, int, int]] = {}
        self._there: dict[str, int] | None = None
        try:
            self._files, self._root = _opened(str(url_or_path))
        except (OSError, pa.ArrowException, ImportError) as error:
            raise ValueError(
                f"a mirror must be a folder or a URL that Arrow's file systems take, got {self.name}: "
                f"{_reason(error)}. Correct --mirror."
            ) from error

    def check(self) -> None:
        """Refuse a mirror that cannot be written to, before hours were spent: a small file is written and removed.

        Raises:
            ValueError: It cannot be written to.
        """
        probe = f".ropewalk-probe-{os.getpid()}"
        try:
            self._put(probe, b"probe")
            self._files.delete_file(self._path(probe))
        except (OSError, pa.ArrowException) as error:
            raise ValueError(
                f"mirror {self.name} must be a place that can be written to, got: {_reason(error)}. Correct --mirror."
            ) from error

    def holds_run(self) -> bool:
        """Return whether there is a run in the mirror, of whatever configuration.

        Raises:
            OSError: The mirror cannot be listed.
        """
        return CONFIG_HASH in self._listed()

    def holds(self, config_sha256: str) -> bool | None:
        """Return whether the mirror holds the run of a configuration; nothing is written.

        Args:
            config_sha256: The run's, see `RunDirectory.config_sha256`.

        Returns:
            True for this run, False for another, to which `sync` would not add; None where there is no run.

        Raises:
            OSError: The mirror cannot be read.
        """
        return self._holds(config_sha256, self._listed())

    def sync(self, folder: str | Path) -> int:
        """Copy what is new or was changed since the last call; hidden files, locks and torn parts stay behind.

        Nothing is removed from the mirror but a journal whose part has taken its place. A part that the mirror
        already has from an earlier driver is not sent again.

        Args:
            folder: Run directory.

        Returns:
            Number of files that were copied.

        Raises:
            FileExistsError: The mirror holds another run.
            FileNotFoundError: The folder holds no run.
            OSError: A file could not be copied; the next call tries it again.
        """
        folder = Path(folder)
        if self._there is None:
            self._there = self._taken_up(folder)
        num_copied = 0
        # Parts once more: a journal that was listed and then became one is in neither copy after the first round.
        for pattern in ("*", f"*{PART}"):
            for name, path in _files_of(folder, pattern):
                num_copied += self._send(name, path)
        for name in [name for name in self._there if name.endswith(JOURNAL)]:
            if (folder / name).exists() or name.removesuffix(JOURNAL) + PART not in self._there:
                continue
            with self._errors(f"let {name} be removed"):
                self._files.delete_file(self._path(name))
            del self._there[name]
            self._copied.pop(name, None)
        return num_copied

    def fetch(self, folder: str | Path) -> int:
        """Copy a run from the mirror into a new folder, to take it up there.

        The configuration's hash comes last, so that a folder is no run before it is complete. What an earlier call
        left that was killed on the way is copied anew. Nothing keeps two processes from fetching into one folder.

        Args:
            folder: Missing, or empty but for the lock of a driver and files of this run without that hash.

        Returns:
            Number of files that were copied.

        Raises:
            FileExistsError: The folder holds a run or other files; they are left alone.
            FileNotFoundError: The mirror holds no run.
            OSError: A file could not be copied; those that were are removed again.
        """
        folder = Path(folder)
        there = self._listed()
        if CONFIG not in there or CONFIG_HASH not in there:
            raise FileNotFoundError(f"mirror {self.name} must hold a run, got none. Give the URL that the run had.")
        for path in _left_by_a_killed_fetch(folder, there):
            path.unlink()
        names = sorted(there, key=lambda name: (name == CONFIG_HASH, name == CONFIG, name))
        with ExitStack() as undo:
            for name in names:
                with self._errors(f"give {name}"):
                    content = self._get(name)
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                undo.callback(path.unlink, missing_ok=True)
                with replacing(path) as temporary:
                    temporary.write_bytes(content)
            undo.pop_all()
        return len(names)

    def _taken_up(self, folder: Path) -> dict[str, int]:
        there, mine = self._listed(), (folder / CONFIG_HASH).read_text(encoding="utf-8")
        if self._holds(mine.partition(" ")[0], there) is False:
            raise FileExistsError(
                f"mirror {self.name} must be empty or hold this run, got one that holds another. "
                "Choose another --mirror."
            )
        return there

    def _holds(self, config_sha256: str, there: Collection[str]) -> bool | None:
        if CONFIG_HASH not in there:
            return None
        with self._errors(f"give {CONFIG_HASH}"):
            return self._get(CONFIG_HASH).partition(b" ")[0] == config_sha256.encode()

    def _send(self, name: str, path: Path) -> bool:
        assert self._there is not None
        try:
            state = path.stat()
            known = self._copied.get(name)
            # The inode too: clocks of file systems tick every few milliseconds.
            new = (state.st_size, state.st_mtime_ns, state.st_ino)
            if known == new or (known is None and path.suffix == PART and self._there.get(name) == state.st_size):
                return False
            content = path.read_bytes()
        except FileNotFoundError:  # a journal became a part meanwhile, or a temporary file was renamed
            return False
        with self._errors(f"take {name}"):
            self._put(name, content)
        self._copied[name] = new
        self._there[name] = len(content)
        return True

    def _listed(self) -> dict[str, int]:
        with self._errors("be listed"):
            found = self._files.get_file_info(FileSelector(self._root, recursive=True, allow_not_found=True))
        names = {PurePosixPath(info.path).relative_to(self._root).as_posix(): info for info in found}
        return {name: info.size for name, info in names.items() if info.type is FileType.File and _is_mirrored(name)}

    def _put(self, name: str, content: bytes) -> None:
        path = self._path(name)
        if isinstance(self._files, LocalFileSystem):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            with replacing(Path(path)) as temporary:
                temporary.write_bytes(content)
            return
        if self._files.type_name not in _WITHOUT_FOLDERS:
            self._files.create_dir(str(PurePosixPath(path).parent), recursive=True)
        with self._files.open_output_stream(path) as stream:
            stream.write(content)

    def _get(self, name: str) -> bytes:
        with self._files.open_input_stream(self._path(name)) as stream:
            return bytes(stream.read())

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            raise OSError(f"mirror {self.name} must {what}, got: {_reason(error)}") from error


def _opened(url_or_path: str) -> tuple[FileSystem, str]:
    if "://" not in url_or_path:
        return LocalFileSystem(), os.path.abspath(Path(url_or_path).expanduser())  # noqa: PTH100 - follows no links
    files, root = FileSystem.from_uri(url_or_path)
    return files, root.rstrip("/")


def _files_of(folder: Path, pattern: str) -> list[tuple[str, Path]]:
    """List the files to copy; those at the top first, so that a mirrored study is never ahead of its measurements."""
    paths = [path for path in folder.rglob(pattern) if path.is_file() and not path.is_symlink()]
    names = sorted((len(path.relative_to(folder).parts), path.relative_to(folder).as_posix()) for path in paths)
    return [(name, folder / name) for _, name in names if _is_mirrored(name)]


def _left_by_a_killed_fetch(folder: Path, there: Collection[str]) -> list[Path]:
    """List what may be removed from a folder to fetch into; refuse one in which anything else lies."""
    found = []
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if (path.is_dir() and not path.is_symlink()) or name == LOCK:
            continue
        is_known = name in there or (name.endswith(JOURNAL) and name.removesuffix(JOURNAL) + PART in there)
        if name == CONFIG_HASH or path.is_symlink() or not (is_known or is_leftover(path)):
            raise FileExistsError(f"folder {folder} must be new or empty, got one with files in it. Choose another.")
        found.append(path)
    return found


def _is_mirrored(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return not (any(part.startswith(".") for part in parts) or parts[-1].endswith(TORN) or ".lock" in parts[-1])


def _reason(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    first, *_ = text.strip().splitlines() or [type(error).__name__]
    return without_password(first if len(first) <= 300 else first[:300] + "...").rstrip(".")
