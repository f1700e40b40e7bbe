"""Ray for a job: started when first needed, one of its own or one that is already up, and left again at the end."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import ray

from jobs.config import ClusterConfig, available_cpus
from jobs.terminal import complain

WORKER_ENVIRONMENT = {
    # One thread per worker: Ray decides how many run side by side.
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "ORT_DISABLE_TELEMETRY": "1",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # A network asks for tens of megabytes, and gives them back, hundreds of times a second: pages that glibc hands to
    # the system each time cost a fifth of the work. Kept, they are as many as the largest moment needed.
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
    "MALLOC_TOP_PAD_": str(128 << 20),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",  # on huge pages, where the kernel has them
}
_PATIENCE_S = 10.0
_GLANCE_S = 0.05
_TRIES = 3


class Cluster:
    """A Ray that is started by the first `start()` and stopped, or left, when the `with` block ends."""

    def __init__(self, config: ClusterConfig, scratch: Path) -> None:
        self._config = config
        self._scratch = scratch
        self._leaving = threading.Event()
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
            TimeoutError: the machine is too busy to start one.
        """
        if self.started:
            return
        self.check()
        # `uv run` would otherwise copy the project into every worker, without its environment.
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        common: dict[str, Any] = {
            "runtime_env": {"env_vars": WORKER_ENVIRONMENT},
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
            # Ray would hold init() back until workers that it starts in advance have registered, and for ever where
            # one of them is killed before that.
            os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
            # A plain init() would join whatever other cluster runs on this machine.
            own: dict[str, Any] = {
                "address": "local",
                "num_cpus": self._config.cpus or available_cpus(),
                "include_dashboard": False,
                "object_store_memory": store << 20 if store else None,
                "object_spilling_directory": str(spill),
                **common,
            }
            _patiently(lambda: ray.init(**own))
            threading.Thread(target=self._watch, daemon=True).start()
        self.started = True

    @property
    def workers(self) -> int:
        """How many one-CPU workers fit."""
        if self._config.cpus:
            return self._config.cpus
        if self.started:
            return max(1, int(ray.cluster_resources().get("CPU", 1)))
        return available_cpus()

    def _watch(self) -> None:
        """End the job in one line when the node's own process dies: Ray's core would end it without one."""
        node = ray._private.worker._global_node
        assert node is not None, "init() started one"
        raylet = node.all_processes["raylet"][0].process
        while raylet.poll() is None:
            if self._leaving.wait(_GLANCE_S):
                return
        if not self._leaving.is_set():
            from pipelines.runner import NODE_IS_GONE

            complain(f"gsv: {NODE_IS_GONE}")
            os._exit(1)

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.started:
            self._leaving.set()
            ray.shutdown()
            self.started = False


def _patiently(start: Callable[[], object]) -> None:
    """Start a node of our own; Ray gives its processes 30 s to come up, which a crowded machine may not.

    Raises:
        TimeoutError: it was not up after several tries.
    """
    for _ in range(_TRIES):
        before = _children()
        try:
            start()
        except Exception as error:  # Ray has no kind of its own for this
            if "timed out during startup" not in str(error):
                raise
            for pid in _children() - before:  # what came up halfway
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        else:
            return
    raise TimeoutError(
        f"Ray was not up after {_TRIES} tries of half a minute: this machine is too busy. Run the same command again "
        "when it is quieter"
    )


def _children() -> set[int]:
    """Process ids of our own children."""
    listed = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return {int(pid) for path in listed for pid in path.read_text().split()}


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
