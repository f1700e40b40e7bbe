"""What several tests share: demonstration recordings, made once per session."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from jobs.cluster import Cluster


@pytest.fixture(scope="session")
def demo_voices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two voices spoken by eSpeak NG in several formats, with known text. Read only."""
    from jobs.demo import make_demo_voices

    return make_demo_voices(tmp_path_factory.mktemp("demo") / "recordings")


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Cluster"]:
    """One Ray of two CPUs for all tests of a process, which can have one only; started by the first that needs it."""
    from jobs.cluster import Cluster
    from jobs.config import ClusterConfig

    with Cluster(ClusterConfig(cpus=2), tmp_path_factory.mktemp("ray")) as ray_of_tests:
        yield ray_of_tests
