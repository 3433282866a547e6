"""RayPool on clusters of several nodes, all on this machine: nodes come and go, and what is wrong is one line."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.cluster_utils import Cluster

from needles.document import NeedleDocument
from workers.pool import RayPool
from workers.scorer import ClusterError, ScoringFactory, Task

Documents = list[NeedleDocument]
Acting = Callable[[Callable[[str], object]], ScoringFactory]

SMALL: dict[str, Any] = {"num_gpus": 0, "object_store_memory": 80 * 2**20, "include_dashboard": False}


@pytest.fixture
def cluster(ray_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head without room for workers, which RAY_ADDRESS names."""
    cluster = Cluster(head_node_args={"num_cpus": 0, "temp_dir": str(ray_folder), **SMALL}, initialize_head=True)
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    yield cluster
    ray.shutdown()
    cluster.shutdown()  # type: ignore[no-untyped-call]
    (ray_folder / "ray" / "ray_current_cluster").unlink(missing_ok=True)


def wait_for_workers(pool: RayPool, num_workers: int) -> float:
    """Seconds until so many are ready."""
    start = time.monotonic()
    while pool.num_workers < num_workers:
        assert time.monotonic() - start < 60
        pool._step()
    return time.monotonic() - start


def test_nodes_come_and_go_and_nothing_is_lost(
    cluster: Cluster, acting: Acting, documents: Documents, tasks: Sequence[Task]
) -> None:
    slow = acting(lambda document_id: time.sleep(0.5))
    first = cluster.add_node(num_cpus=2, **SMALL)
    pool = RayPool(slow, documents, num_workers=3, min_workers=2)
    assert wait_for_workers(pool, 2) < 20
    for task in tasks:
        pool.submit(task)
    measured = pool.collect()
    cluster.remove_node(first, allow_graceful=False)
    second = cluster.add_node(num_cpus=3, **SMALL)
    for task in tasks:
        pool.submit(task)
    for _ in range(2 * len(tasks) - 1):
        measured += pool.collect()
    assert pool.collect() == []
    assert [measurement.failure for measurement in measured] == [None] * 8
    assert sorted(measurement.document for measurement in measured) == sorted(2 * [d.id for d in documents])
    assert wait_for_workers(pool, 3) < 20
    assert 1 <= pool.num_retries <= 4
    pool.close()
    assert not ray.is_initialized()  # the pool had connected to it
    assert second in cluster.worker_nodes


def test_workers_join_when_there_is_room_and_a_part_of_a_gpu_is_of_one_gpu(
    cluster: Cluster, acting: Acting, documents: Documents
) -> None:
    idle = acting(lambda document_id: None)
    cluster.add_node(num_cpus=1, **SMALL)
    with pytest.raises(ValueError, match=r"room for 2 workers of 1 CPUs and 0 GPUs each, got room for 1"):
        RayPool(idle, documents, num_workers=3, min_workers=2)
    pool = RayPool(idle, documents, num_workers=3, min_workers=1)
    assert (pool.num_workers, pool.capacity) == (1, 6)
    cluster.add_node(num_cpus=2, **SMALL | {"num_gpus": 2})
    assert wait_for_workers(pool, 3) < 20
    with pytest.raises(ValueError, match=r"3 workers of 0 CPUs and 0.6 GPUs each, got room for 2: 3 CPUs and 2 GPUs"):
        RayPool(idle, documents, num_workers=3, gpus_per_worker=0.6, cpus_per_worker=0)
    with pytest.raises(ValueError, match=r"9 workers of 0.1 CPUs and 0.25 GPUs each, got room for 8"):
        RayPool(idle, documents, num_workers=9, gpus_per_worker=0.25, cpus_per_worker=0.1)
    halves = RayPool(idle, documents, num_workers=2, gpus_per_worker=0.6, cpus_per_worker=0)
    assert wait_for_workers(halves, 2) < 20
    halves.close()
    pool.close()


def test_a_pool_without_any_node_left_gives_up(
    cluster: Cluster, acting: Acting, documents: Documents, tasks: Sequence[Task]
) -> None:
    node = cluster.add_node(num_cpus=1, **SMALL)
    pool = RayPool(acting(lambda document_id: time.sleep(60)), documents, num_workers=1, start_seconds=4.0)
    pool.submit(tasks[0])
    cluster.remove_node(node, allow_graceful=False)
    with pytest.raises(ClusterError, match=r"worker must be alive, got none for 4 seconds, the last: Actor\w+Error: "):
        pool.collect()
    pool.close()


def test_a_cluster_of_another_version_is_one_clear_line(cluster: Cluster, acting: Acting, documents: Documents) -> None:
    assert cluster.head_node is not None
    store = cluster.head_node.get_gcs_client()
    key, space = b"CLUSTER_METADATA", b"cluster"
    metadata = json.loads(store.internal_kv_get(key, space))
    store.internal_kv_put(key, json.dumps(metadata | {"ray_version": "2.0.0"}).encode(), True, space)
    with pytest.raises(
        ValueError, match=r"must run the same Ray and Python, got Version mismatch: .* Ray: 2.0.0"
    ) as error:
        RayPool(acting(lambda document_id: None), documents, num_workers=1)
    assert "\n" not in str(error.value)
    assert not ray.is_initialized()


def test_a_cluster_that_is_not_there_is_one_clear_line(
    acting: Acting, documents: Documents, ray_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = time.monotonic()
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ValueError, match=r"must be reachable at 127.0.0.1:1 \(from RAY_ADDRESS\), got ConnectionRef"):
        RayPool(acting(lambda document_id: None), documents, num_workers=1)
    monkeypatch.setenv("RAY_ADDRESS", "ray://127.0.0.1:1")
    with pytest.raises(ValueError, match=r"must be reachable at ray://127.0.0.1:1 \(from RAY_ADDRESS\), got Conn"):
        RayPool(acting(lambda document_id: None), documents, num_workers=1)
    monkeypatch.delenv("RAY_ADDRESS")
    stale = ray_folder / "ray" / "ray_current_cluster"
    stale.write_text("127.0.0.1:1")
    with pytest.raises(ValueError, match=r"at 127.0.0.1:1 \(from .*ray_current_cluster\), got .* or run `ray stop`"):
        RayPool(acting(lambda document_id: None), documents, num_workers=1)
    stale.unlink()
    assert time.monotonic() - start < 10


def test_a_full_object_store_is_one_clear_line(acting: Acting, documents: Documents, ray_folder: Path) -> None:
    # Ray takes its disk for full from 0.01 % on
    full = {"local_fs_capacity_threshold": 0.0001}
    store = 80 * 2**20
    ray.init(
        address="local",
        num_cpus=1,
        object_store_memory=store,
        include_dashboard=False,
        _system_config=full,
        _temp_dir=str(ray_folder),
    )
    filling = [ray.put(np.zeros(store // 2, dtype=np.uint8))]
    huge = [replace(documents[0], token_ids=np.zeros(store // 4, dtype=np.int32)), *documents[1:]]
    with pytest.raises(
        ValueError, match=r"must have room for 4 documents of 8\d.\d MB in all, got OutOfDiskError: Local"
    ):
        RayPool(acting(lambda document_id: None), huge, num_workers=1)
    assert ray.is_initialized()
    del filling
    ray.shutdown()


LOSES_ITS_HEAD = """
import os
import time
from pathlib import Path
from ray.cluster_utils import Cluster
from workers import cluster as ours
from workers.pool import RayPool
from workers.scorer import ClusterError
ours.WATCH_SECONDS, ours.LOST_SECONDS = 0.5, 2.0
cluster = Cluster(initialize_head=True, head_node_args=HEAD)
def make(documents):
    class Slow:
        def score(self, candidate, document_ids):
            time.sleep(600)
    return Slow()
pool = RayPool(make, (), num_workers=1)
from workers.scorer import Task
pool._documents = {}
pool.submit(Task(None, ()))
cluster.head_node.kill_gcs_server(check_alive=False)
try:
    pool.collect()
except ClusterError as error:
    print("CLUSTER ERROR", error, flush=True)
pool.close()
print("CLOSED", flush=True)
os._exit(0)  # what Ray does at a normal exit waits for the head
"""


def test_a_head_that_is_lost_ends_the_run_with_one_line(ray_folder: Path) -> None:
    head = {"num_cpus": 1, "temp_dir": str(ray_folder), **SMALL}
    program = LOSES_ITS_HEAD.replace("HEAD)", f"{head!r})")
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=False)
    assert "CLUSTER ERROR the head of the Ray cluster must answer at " in done.stdout
    assert "CLOSED" in done.stdout
    assert time.monotonic() - start < 50  # after 60 Ray would have ended the program
