"""An MLflow server of the test's own, on loopback, gone with the test."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.jobs import stores


@contextmanager
def mlflow_server(store: str, artifacts: Path) -> Iterator[str]:
    """The address of a server over `store` that keeps files in `artifacts`."""
    with stores.mlflow_server(store, artifacts, artifacts.parent / "mlflow-server.log") as server:
        yield stores.server_uri(server)
