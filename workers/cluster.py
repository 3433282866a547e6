"""The Ray cluster that a pool works on: found, checked, watched. Each thing wrong with it is one line."""

import logging
import math
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

import ray
from ray import ObjectRef
from ray.exceptions import ObjectStoreFullError, OutOfDiskError, RayError

from needles.document import NeedleDocument
from workers.scorer import ClusterError, failure_reason

CONNECT_SECONDS = 5.0
"""How long the head of a cluster may take to accept a connection."""
WATCH_SECONDS = 5.0
"""How often a cluster's head is looked for."""
LOST_SECONDS = 40.0
"""How long it may be away. After 60 Ray ends the process without a word that a user could use."""

logger = logging.getLogger(__name__)


def connect() -> bool:
    """Connect to the Ray that RAY_ADDRESS names, else to one on this machine, else start one here.

    Returns:
        Whether that was needed: False where this process is connected already.

    Raises:
        ValueError: There is no cluster at that address, it runs another Ray or Python, or none can be started here.
    """
    if ray.is_initialized():
        return False
    address, source = _address()
    _check_address(address, source)
    try:
        with _own_sigterm():
            ray.init()
    except (RayError, RuntimeError, OSError) as error:
        ray.shutdown()
        raise ValueError(_connection_message(address, source, error)) from error
    return True


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep the process's way with SIGTERM, for which Ray sets a handler that ends it without a word."""
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, before)


def check_room(num_workers: int, needed: Mapping[str, float]) -> None:
    """Check that the nodes can hold so many workers, were they free.

    Args:
        num_workers: Workers to place.
        needed: "CPU" and "GPU" of each.

    Raises:
        ValueError: They cannot, or a worker shall have GPUs of which one is a part.
    """
    if needed["GPU"] > 1 and needed["GPU"] != int(needed["GPU"]):
        raise ValueError(
            f"--gpus-per-worker must be a whole number where it is above 1, got {needed['GPU']:g}. Round it."
        )
    nodes: list[Mapping[str, float]] = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    num_places = sum(
        min((_num_places(kind, node.get(kind, 0.0), amount) for kind, amount in needed.items()), default=math.inf)
        for node in nodes
    )
    if num_workers > num_places:
        there = ray.cluster_resources()  # type: ignore[no-untyped-call]
        raise ValueError(
            f"the cluster must have room for {num_workers} workers of {needed['CPU']:g} CPUs and {needed['GPU']:g} "
            f"GPUs each, got room for {num_places}: {there.get('CPU', 0):g} CPUs and {there.get('GPU', 0):g} GPUs on "
            f"{len(nodes)} nodes. Ask for fewer workers or for less each."
        )


def _num_places(kind: str, there: float, amount: float) -> float:
    if amount == 0:
        return math.inf
    if kind == "GPU" and amount < 1:
        return int(there) * math.floor(1 / amount)  # a part is of one GPU: what is left of two makes none
    return math.floor(there / amount)


def share_documents(documents: Sequence[NeedleDocument]) -> "ObjectRef[tuple[NeedleDocument, ...]]":
    """Put documents where all workers can read them.

    Args:
        documents: What to put.

    Returns:
        Their reference; they stay as long as it does.

    Raises:
        ValueError: Memory and disk of Ray's object store are full.
    """
    try:
        return ray.put(tuple(documents))
    except (ObjectStoreFullError, OutOfDiskError) as error:
        num_bytes = sum(document.token_ids.nbytes for document in documents)
        raise ValueError(
            f"Ray's object store must have room for {len(documents)} documents of {num_bytes / 1e6:.1f} MB in all, got "
            f"{failure_reason(error)}. Free space in Ray's temporary folder, or start Ray with --object-store-memory."
        ) from error


class ClusterWatch:
    """Looks every few seconds whether the cluster is still there, so that its loss is an error, not a dead driver."""

    def __init__(self) -> None:
        """Take the head of the cluster that this process is connected to; one that is out of sight is not watched."""
        self._address: str = ray.get_runtime_context().gcs_address
        self._seen = self._looked = monotonic()
        self.is_lost = False
        """Whether `check` found the head gone; Ray's own calls, its shutdown too, only hang from then on."""
        self._watches = self._answers()

    def check(self) -> None:
        """Return where all is well or may become so.

        Raises:
            ClusterError: This process is no longer connected, or the head has been away for too long.
        """
        if not ray.is_initialized():
            # Ray would start another one here at the next call
            raise ClusterError(
                "the driver must be connected to Ray, got a connection that was shut down. Start it again."
            )
        if not self._watches or monotonic() - self._looked < WATCH_SECONDS:
            return
        if self._answers():
            self._seen = monotonic()
        elif monotonic() - self._seen > LOST_SECONDS:
            self.is_lost = True
            raise ClusterError(
                f"the head of the Ray cluster must answer at {self._address}, got nothing for "
                f"{monotonic() - self._seen:.0f} seconds. Is its node up?"
            )
        self._looked = monotonic()

    def _answers(self) -> bool:
        try:
            _touch(self._address)
        except (OSError, ValueError):
            return False
        return True


def _address() -> tuple[str, str]:
    """Return the address that `ray.init` will take, empty where it will start a cluster, and what says so."""
    if os.environ.get("RAY_ADDRESS"):
        return os.environ["RAY_ADDRESS"], "RAY_ADDRESS"
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"  # noqa: S108 - where Ray looks
    file = Path(folder, "ray", "ray_current_cluster")
    return (file.read_text().strip(), str(file)) if file.is_file() else ("", "")


def _check_address(address: str, source: str) -> None:
    """Refuse a cluster that does not answer at once; Ray itself looks for it for minutes."""
    if ":" not in address.removeprefix("ray://"):
        return
    try:
        _touch(address)
    except (OSError, ValueError) as error:
        raise ValueError(_connection_message(address, source, error)) from error


def _touch(address: str) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()


def _connection_message(address: str, source: str, error: Exception) -> str:
    if "Version mismatch" in str(error):
        versions = " ".join(str(error).split())
        return f"driver and cluster must run the same Ray and Python, got {versions}. Install the same on both."
    where = f"at {address} (from {source})" if address else "here"
    return (
        f"a Ray cluster must be reachable {where}, got {failure_reason(error)}. "
        "Start it, correct RAY_ADDRESS, or run `ray stop` and unset it for a Ray of your own."
    )
