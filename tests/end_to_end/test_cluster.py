"""`gsv onboard` against a Ray cluster of two nodes that is already up, and an MLflow server on PostgreSQL."""

import json
import os
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.mlflow_server import mlflow_server
from tests.end_to_end.test_onboard import FEW_STEPS, gsv
from tests.jobs.stores import free_port, postgres


@pytest.fixture
def database() -> Iterator[str]:
    """A PostgreSQL whose folder its own user can reach, which pytest's folders do not allow."""
    with tempfile.TemporaryDirectory(prefix="gsv-pg-") as folder:
        Path(folder).chmod(0o755)
        with postgres(Path(folder) / "server") as uri:
            yield uri


@pytest.fixture
def ray_cluster() -> Iterator[str]:
    """The address of a head and a second node, each a process of this machine with one CPU."""
    from ray.cluster_utils import Cluster

    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        yield cluster.address
    finally:
        cluster.shutdown()


@pytest.mark.slow
def test_two_nodes_and_a_shared_registry(database: str, ray_cluster: str, demo_voices: Path, tmp_path: Path) -> None:
    with mlflow_server(database, tmp_path / "artifacts") as tracking_uri:
        done = gsv(
            "onboard",
            demo_voices,
            "--workspace",
            tmp_path / "w",
            "--ray-address",
            ray_cluster,
            "--tracking-uri",
            tracking_uri,
            "--json",
            *FEW_STEPS,
        )
        summary = json.loads(done.stdout)
        assert {voice["voice"]: voice["state"] for voice in summary["voices"]} == {
            "ada": "registered",
            "linus": "registered",
        }
        assert summary["tracking_uri"] == tracking_uri
        assert not (tmp_path / "w" / "mlflow.db").exists()
        answer = urllib.request.urlopen(f"{tracking_uri}/api/2.0/mlflow/registered-models/search?max_results=10")
        models = json.load(answer)["registered_models"]
        assert sorted(model["name"] for model in models) == ["gsv-ada", "gsv-linus"]


def test_an_address_where_nothing_answers_is_one_line(demo_voices: Path, tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    done = gsv("onboard", demo_voices, "--workspace", tmp_path / "w", "--ray-address", address, expect=2)
    assert address in done.stderr
    assert "ray start --head" in done.stderr


def test_a_registry_where_nothing_answers_is_one_line_before_any_work(demo_voices: Path, tmp_path: Path) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    done = gsv("onboard", demo_voices, "--workspace", tmp_path / "w", "--tracking-uri", uri, expect=2)
    assert uri in done.stderr
    assert not list((tmp_path / "w").rglob("*.done"))
