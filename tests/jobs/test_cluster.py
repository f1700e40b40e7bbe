"""Addresses are looked at before Ray is; the Ray of this package's tests is as it was asked for."""

import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest
import ray

from jobs.cluster import Cluster, _patiently
from jobs.config import ClusterConfig, available_cpus
from tests.jobs.stores import free_port


def test_the_ray_it_starts_is_as_asked_for(cluster: Cluster) -> None:
    cluster.start()
    cluster.start()  # already up: nothing happens
    assert cluster.started
    assert ray.cluster_resources()["CPU"] == cluster.workers == 2
    names = ("OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM", "ORT_DISABLE_TELEMETRY")
    seen = ray.get(ray.remote(lambda: {name: os.environ.get(name) for name in names}).remote())
    assert seen == {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "ORT_DISABLE_TELEMETRY": "1"}


def test_nothing_is_started_that_nobody_asked_for(tmp_path: Path) -> None:
    with Cluster(ClusterConfig(), tmp_path) as unused:
        assert unused.workers == available_cpus()
        unused.check()
    assert not unused.started
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("address", ["nonsense", "ray://host", "host:port"])
def test_an_address_that_is_none_is_named(tmp_path: Path, address: str) -> None:
    with pytest.raises(ValueError, match="expected HOST:PORT") as refusal:
        Cluster(ClusterConfig(ray_address=address), tmp_path).check()
    assert address in str(refusal.value)


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nothing_listens_is_named(tmp_path: Path, scheme: str) -> None:
    address = f"{scheme}127.0.0.1:{free_port()}"
    with pytest.raises(ValueError, match="ray start --head") as refusal:
        Cluster(ClusterConfig(ray_address=address), tmp_path).start()
    assert address in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_an_address_where_something_listens_passes(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
            Cluster(ClusterConfig(ray_address=address), tmp_path).check()


class HalfUpError(Exception):
    pass


def test_a_node_that_does_not_come_up_is_cleared_away_and_tried_again() -> None:
    started: list[subprocess.Popen[bytes]] = []

    def start(fails: int) -> None:
        if len(started) < fails:
            started.append(subprocess.Popen(["sleep", "600"]))
            raise HalfUpError("The current node timed out during startup. This could happen because …")

    _patiently(lambda: start(2))
    assert [process.wait(timeout=10) for process in started] == [-signal.SIGKILL] * 2
    with pytest.raises(TimeoutError, match="too busy"):
        _patiently(lambda: start(9))
    for process in started:
        process.wait(timeout=10)

    def broken() -> None:
        raise HalfUpError("another cause")

    with pytest.raises(HalfUpError):
        _patiently(broken)
