"""A lease on a corpus in an object store: one job at a time, without a lock that dies with its process, or a clock.

Leases are numbered: `lease/<n>.json` is put only if absent, so of two that want the same number the store lets one
have it. The holder writes a new beat into its own again and again; whoever waits counts by his own clock how long the
last one has stood still, and after `SILENCE_S` takes the next number. The holder of an old number sees the newer one at
its next beat and knows that it is taken for dead. Even then nothing is lost: units are put only if absent, and two
makers of a unit make the same bytes.
"""

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from pipelines.storage import Storage, StorageError

logger = logging.getLogger(__name__)

BEAT_S = 10.0
SILENCE_S = 60.0
"""Without a beat for this long, the holder is taken for dead."""
_FOLDER = "lease"


class _Lease:
    """Number `number`, ours until `end`."""

    def __init__(self, corpus: Storage, number: int, token: str) -> None:
        self._corpus, self._number, self._token = corpus, number, token
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Let the next job have it at once; where the store is gone, it sees for itself that nobody beats."""
        self._ended.set()
        self._thread.join()
        try:
            if self._is_newest():
                self._corpus.write(_path(self._number), _record(self._token, 0, free=True))
        except StorageError as error:
            logger.warning("%s", error)

    def _keep(self) -> None:
        beat = 1
        while not self._ended.wait(BEAT_S):
            beat += 1
            try:
                if not self._is_newest():
                    logger.error("%s: another job has taken the lease over: this one seemed dead", self._corpus.root)
                    return
                self._corpus.write(_path(self._number), _record(self._token, beat))
            except StorageError as error:
                logger.warning("%s", error)  # the work itself will say so, if it lasts

    def _is_newest(self) -> bool:
        return _newest(self._corpus) == self._number


@contextmanager
def held(corpus: Storage, *, wait_s: float = 0.0) -> Iterator[None]:
    """Hold the lease while the block runs, after waiting up to `wait_s` beyond what it takes to see a dead holder.

    Raises:
        ValueError: another job holds it.
    """
    lease = _taken(corpus, wait_s)
    try:
        yield
    finally:
        lease.end()


def _taken(corpus: Storage, wait_s: float) -> _Lease:
    began = seen_at = time.monotonic()
    token = uuid.uuid4().hex
    seen: bytes | None = None
    beats = -1
    while True:
        number = _newest(corpus)
        record = _read(corpus, number)
        now = time.monotonic()
        if record != seen:
            seen, seen_at, beats = record, now, beats + 1
        if record is None or json.loads(record)["free"] or now - seen_at >= SILENCE_S:
            if corpus.write_if_absent(_path(number + 1), _record(token, 1)):
                for old in corpus.names(_FOLDER):
                    if old < _name(number + 1):
                        corpus.delete(f"{_FOLDER}/{old}")
                return _Lease(corpus, number + 1, token)
            continue
        # Nobody is sent away by a holder who may be dead: a beat has to be seen.
        if beats > 0 and now - began >= wait_s:
            raise ValueError(
                f"{corpus.root}: another job is at work on this corpus ({json.loads(record)['holder']}); wait for it"
            )
        time.sleep(min(BEAT_S / 4, SILENCE_S / 4))


def _newest(corpus: Storage) -> int:
    """The highest number that was ever taken; 0 for none."""
    numbers = [0]
    for name in corpus.names(_FOLDER):
        with suppress(ValueError):
            numbers.append(int(name.removesuffix(".json")))
    return max(numbers)


def _read(corpus: Storage, number: int) -> bytes | None:
    try:
        return corpus.read(_path(number))
    except FileNotFoundError:
        return None


def _name(number: int) -> str:
    return f"{number:08d}.json"


def _path(number: int) -> str:
    return f"{_FOLDER}/{_name(number)}"


def _record(token: str, beat: int, *, free: bool = False) -> bytes:
    holder = f"process {os.getpid()} on {socket.gethostname()}"
    return json.dumps({"holder": holder, "token": token, "beat": beat, "free": free}, sort_keys=True).encode()
