"""A PostgreSQL and an MLflow server of the test's own, on free ports, gone with the test."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PASSWORD = "not-to-be-shown"


def free_port() -> int:
    """A TCP port nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """The address of a fresh server with its data in `folder`; skips where there are no binaries or no user for it."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or [Path(shutil.which("initdb") or "/nonexistent")]
    binaries = found[-1].parent
    if not (binaries / "postgres").is_file():
        pytest.skip("no PostgreSQL binaries here")
    user: str | None = None
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        names = [entry.pw_name for entry in pwd.getpwall()]
        user = next((name for name in ("postgres", "nobody") if name in names), None)
        if user is None:
            pytest.skip("PostgreSQL refuses root, and there is no user postgres or nobody to run it as")
    folder.mkdir()
    data, password = folder / "data", folder / "password"
    password.write_text(PASSWORD, encoding="utf-8")
    if user is not None:
        for path in (folder, password):
            shutil.chown(path, user)
    settings: dict[str, object] = {"user": user} if user is not None else {}
    port = free_port()
    subprocess.run(
        [binaries / "initdb", "-D", data, "-U", "gsv", "--pwfile", password, "-A", "scram-sha-256", "--no-sync"],
        check=True,
        capture_output=True,
        cwd=folder,
        **settings,
    )
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [binaries / "postgres", "-D", data, "-p", str(port), "-k", folder, "-c", "listen_addresses=127.0.0.1"],
            stdout=log,
            stderr=log,
            cwd=folder,
            **settings,
        )
    try:
        for _ in range(100):
            ready = subprocess.run(
                [binaries / "pg_isready", "-h", "127.0.0.1", "-p", str(port)], capture_output=True, check=False
            )
            if ready.returncode == 0:
                break
            assert server.poll() is None, (folder / "log").read_text(encoding="utf-8", errors="replace")
            time.sleep(0.1)
        yield f"postgresql://gsv:{PASSWORD}@127.0.0.1:{port}/postgres"
    finally:
        server.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown: without waiting for clients to leave
        server.wait(timeout=30)


@contextmanager
def mlflow_server(store: str, files: Path, log: Path, port: int | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A real MLflow server over the database `store` that keeps the files in `files`; `server_uri` says where."""
    port = port or free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", store.replace("postgresql:", "postgresql+psycopg2:")]
    command += ["--artifacts-destination", str(files)]
    settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with log.open("wb") as output:
        # A group of its own: a signal to it reaches the workers, too.
        process = subprocess.Popen(
            command, env=os.environ | settings, stdout=output, stderr=output, start_new_session=True
        )
    try:
        _wait_for(server_uri(process), process, log)
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGCONT)
            process.terminate()
        process.wait(timeout=30)


def server_uri(process: subprocess.Popen[bytes]) -> str:
    """The address of a `mlflow_server`."""
    command = [str(part) for part in process.args]  # type: ignore[union-attr]
    return f"http://127.0.0.1:{command[command.index('--port') + 1]}"


def _wait_for(uri: str, process: subprocess.Popen[bytes], log: Path) -> None:
    import requests

    for _ in range(240):
        assert process.poll() is None, log.read_text(encoding="utf-8")
        try:
            if requests.get(f"{uri}/health", timeout=1).ok:
                return
        except (requests.ConnectionError, requests.Timeout):
            time.sleep(0.5)
    raise AssertionError(log.read_text(encoding="utf-8"))
