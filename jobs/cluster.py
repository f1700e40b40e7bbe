"""Ray for a job: started when first needed, one of its own or one that is already up, and left again at the end."""

import logging
import os
import socket
from pathlib import Path
from types import TracebackType
from typing import Any

import ray

from jobs.config import ClusterConfig, available_cpus

_ENVIRONMENT = {
    # One thread per worker: Ray decides how many run side by side.
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "ORT_DISABLE_TELEMETRY": "1",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
}
_PATIENCE_S = 10.0


class Cluster:
    """A Ray that is started by the first `start()` and stopped, or left, when the `with` block ends."""

    def __init__(self, config: ClusterConfig, scratch: Path) -> None:
        self._config = config
        self._scratch = scratch
        self.started = False

    def check(self) -> None:
        """See that something listens at the given address, if one was given; Ray itself would try for minutes.

        Raises:
            ValueError: nothing does.
        """
        address = self._config.ray_address
        if not address or address in ("auto", "local"):
            return
        host, separator, port = address.removeprefix("ray://").rpartition(":")
        if not separator or not port.isdigit():
            raise ValueError(f"--ray-address {address}: expected HOST:PORT, ray://HOST:PORT or auto")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE_S).close()
        except OSError as error:
            raise ValueError(
                f"--ray-address {address}: no Ray cluster answers there ({error.strerror or error}); start one with "
                "`ray start --head`, or leave the option out"
            ) from error

    def start(self) -> None:
        """Make sure Ray is up.

        Raises:
            ValueError: no cluster answers at the given address.
        """
        if self.started:
            return
        self.check()
        # `uv run` would otherwise copy the project into every worker, without its environment.
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        common: dict[str, Any] = {
            "runtime_env": {"env_vars": _ENVIRONMENT},
            "log_to_driver": False,
            "logging_level": logging.ERROR,
            "ignore_reinit_error": False,
        }
        if self._config.ray_address:
            try:
                ray.init(address=self._config.ray_address, **common)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise ValueError(
                    f"--ray-address {self._config.ray_address}: no Ray cluster answers there ({_first_line(error)}); "
                    "start one with `ray start --head`, or leave the option out"
                ) from error
        else:
            store = self._config.object_store_mb
            spill = self._scratch / "spill"
            spill.mkdir(parents=True, exist_ok=True)
            # A plain init() would join whatever other cluster runs on this machine.
            ray.init(
                address="local",
                num_cpus=self._config.cpus or available_cpus(),
                include_dashboard=False,
                object_store_memory=store << 20 if store else None,
                object_spilling_directory=str(spill),
                **common,
            )
        self.started = True

    @property
    def workers(self) -> int:
        """How many one-CPU workers fit."""
        if self._config.cpus:
            return self._config.cpus
        if self.started:
            return max(1, int(ray.cluster_resources().get("CPU", 1)))
        return available_cpus()

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.started:
            ray.shutdown()
            self.started = False


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
