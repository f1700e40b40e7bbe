"""An MLflow server of the test's own, on loopback, gone with the test."""

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.jobs.stores import free_port


@contextmanager
def mlflow_server(store: str, artifacts: Path) -> Iterator[str]:
    """The address of a server over `store` that keeps files in `artifacts`."""
    port = free_port()
    # MLflow wants the driver's name: a bare postgresql:// means psycopg 3 to SQLAlchemy.
    store = store.replace("postgresql://", "postgresql+psycopg2://")
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", store, "--artifacts-destination", str(artifacts)]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    log = artifacts.parent / "mlflow-server.log"
    with log.open("wb") as stream:
        server = subprocess.Popen(command, stdout=stream, stderr=stream, env=environment)
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(240):
            assert server.poll() is None, log.read_text(errors="replace")[-2000:]
            try:
                urllib.request.urlopen(f"{address}/health", timeout=2)
                break
            except OSError:
                time.sleep(0.5)
        else:
            raise AssertionError(f"no answer from MLflow: {log.read_text(errors='replace')[-2000:]}")
        yield address
    finally:
        server.terminate()
        server.wait(timeout=30)
