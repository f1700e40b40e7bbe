"""An S3 server on loopback, and in front of it a proxy that fails on demand: answers 500, is silent, or hangs up."""

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal

Fault = Literal["answers 500", "is silent", "hangs up"]
FAULTS: tuple[Fault, ...] = ("answers 500", "is silent", "hangs up")
_ERROR = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_CHUNK = 1 << 16


class BadStore:
    """The proxy. `fail(fault, times)` lets the next requests fail; `fail_every` one in so many, each fault in turn."""

    def __init__(self, upstream_port: int) -> None:
        self._upstream = ("127.0.0.1", upstream_port)
        self._lock = threading.Lock()
        self._fault: Fault = "answers 500"
        self._times = 0
        self._every = 0
        self._requests = 0
        self.failed = 0
        self._ended = threading.Event()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def fail(self, fault: Fault, times: int) -> None:
        with self._lock:
            self._fault, self._times = fault, times

    def fail_every(self, requests: int) -> None:
        with self._lock:
            self._every = requests

    def close(self) -> None:
        self._ended.set()
        self._listening.close()

    def _next_fault(self) -> Fault | None:
        with self._lock:
            self._requests += 1
            if self._times:
                self._times -= 1
            elif self._every and self._requests % self._every == 0:
                self._fault = FAULTS[self.failed % len(FAULTS)]
            else:
                return None
            self.failed += 1
            return self._fault

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError), socket.create_connection(self._upstream) as server:
            threading.Thread(target=_pump, args=(server, client), daemon=True).start()
            while data := client.recv(_CHUNK):
                # A request begins with its method; what follows of a long one does not.
                fault = self._next_fault() if data[:7].split(b" ")[0] in _METHODS else None
                if fault == "answers 500":
                    client.sendall(_ERROR)
                    return
                if fault == "is silent":
                    self._ended.wait(60)
                    return
                if fault == "hangs up":
                    server.sendall(data[: len(data) // 2])
                    return
                server.sendall(data)


_METHODS = (b"GET", b"PUT", b"POST", b"HEAD", b"DELETE")


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(_CHUNK):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@contextmanager
def bad_store() -> Iterator[BadStore]:
    """A store with the bucket `corpora`, which the environment of this process and its children points at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    store = BadStore(port)
    names = {
        "AWS_ENDPOINT_URL": store.address,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        for _ in range(300):
            with suppress(OSError):
                urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/corpora", method="PUT"))
                break
            time.sleep(0.1)
        yield store
    finally:
        store.close()
        server.terminate()
        server.wait()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value
