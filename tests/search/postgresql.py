"""A real PostgreSQL server for tests: Debian's package, on loopback, with files of its own."""

import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

USER = "ropewalk"
PASSWORD = "s3cret@/:word"
"""Holds what separates the parts of a URL, so that it must be percent-encoded there."""


class NoPostgresqlError(Exception):
    """There is no server on this machine, or nobody to run it as."""


class Server(NamedTuple):
    """A running server."""

    address: str
    """Host and port."""
    start: Callable[[], None]
    """Starts it again after `stop`."""
    stop: Callable[[], None]
    """Stops it at once, as a crash does."""

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://{USER}:{quote(PASSWORD, safe='')}@{self.address}/postgres"


@contextmanager
def postgresql(folder: Path) -> Iterator[Server]:
    """Yield a server with the user and password above and the database `postgres`."""
    binaries = _binaries()
    data, secret = folder / "data", folder / "password"
    secret.write_text(PASSWORD)
    account = _account(folder)
    _run([binaries / "initdb", "--auth=scram-sha-256", f"--username={USER}", f"--pwfile={secret}", data], account)
    port = _free_port()
    options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories='' -c fsync=off"
    start: list[str | Path] = [binaries / "pg_ctl", "start", "--wait"]
    start += [f"--pgdata={data}", f"--log={folder / 'log'}", f"--options={options}"]
    stop: list[str | Path] = [binaries / "pg_ctl", "stop", "--mode=immediate", f"--pgdata={data}"]
    _run(start, account)
    try:
        yield Server(f"127.0.0.1:{port}", lambda: _run(start, account), lambda: _run(stop, account))
    finally:
        _run(stop, account)


def _binaries() -> Path:
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    servers = [folder for folder in folders if (folder / "initdb").is_file()]
    if not servers:
        raise NoPostgresqlError("PostgreSQL's server is not installed (Debian: apt-get install postgresql)")
    return servers[-1]


def _account(folder: Path) -> str | None:
    """Return whom to run the server as; PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam("postgres")
    except KeyError:
        raise NoPostgresqlError("PostgreSQL does not run as root, and there is no user postgres") from None
    for path in (folder, *folder.iterdir()):
        os.chown(path, entry.pw_uid, entry.pw_gid)
    for parent in folder.parents:  # pytest's own folders are closed to other users; one more may now pass through
        if parent.stat().st_uid == 0 and not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)
    return entry.pw_name


def _run(command: Sequence[str | Path], account: str | None) -> None:
    prefix = ["setpriv", f"--reuid={account}", f"--regid={account}", "--init-groups", "--"] if account else []
    done = subprocess.run(
        [*prefix, *map(str, command)], capture_output=True, text=True, check=False, cwd="/", stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, f"{command[0]}: {done.stderr or done.stdout}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
