"""An MLflow store by its address, what may go wrong with one, and how a new one is made."""

import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from mlflow import MlflowClient

T = TypeVar("T")

POSTGRES = "postgresql+psycopg2://"
REPORT_FOLDER = "report"
"""Where the report of a whole job lies among the artefacts of its run."""
RUN_ID_TAG = "gsv.run_id"
"""On every run of a voice: the id that its folder has."""
migrating = threading.Lock()
"""Alembic, which migrates, keeps its context in a global: one store at a time is made in a process."""

_MOST_TRIES = 20
_CONTENTION = (
    "Model Version creation error",  # MLflow itself gives up after three
    "database is locked",
    "deadlock detected",
    # MLflow looks whether a row is there and then adds it: of two that do so at once one is refused.
    "UNIQUE constraint failed",
    "duplicate key",
    "Duplicate entry",
)
"""In what MLflow raises where several processes write the same at one moment."""


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where runs go: a store, the experiment in it, and where its files lie if the store does not decide that."""

    uri: str = field(repr=False)
    """May hold a password."""
    experiment: str
    artifact_root: str | None = None


class TrackingError(RuntimeError):
    """The store refused or could not be reached in the middle of things; the same call, made again, goes on."""


class Store:
    """An MLflow store by its address: `sqlite:///…`, `postgresql://…` or the `http(s)://` of a server.

    Raises:
        ValueError: MLflow's address is of none of these kinds.
    """

    def __init__(self, uri: str) -> None:
        set_defaults()
        # A bare postgresql:// asks SQLAlchemy 2.1 for psycopg 3; psycopg2 is what we install.
        scheme, separator, rest = uri.partition("://")
        self.uri = POSTGRES + rest if scheme in ("postgresql", "postgres") else uri
        if not separator or scheme.split("+")[0] not in ("sqlite", "postgresql", "postgres", "http", "https"):
            raise ValueError(
                "MLflow's address should be sqlite:///FILE, postgresql://… or http(s)://…, got " + without_password(uri)
            )

    def __str__(self) -> str:
        return without_password(self.uri)

    @property
    def sqlite_path(self) -> Path | None:
        """The file of an SQLite store."""
        scheme, _, path = self.uri.partition(":///")
        return Path(path) if scheme.split("+")[0] == "sqlite" else None

    @cached_property
    def client(self) -> "MlflowClient":
        """MLflow's client, with this store's address and no global state."""
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)

    @contextmanager
    def explained(self, what: str) -> Iterator[None]:
        """Turn what MLflow, its files and connections raise into a TrackingError: one line that says `what` failed."""
        from mlflow.exceptions import MlflowException

        try:
            yield
        except (MlflowException, OSError) as error:
            raise TrackingError(f"MLflow store {self}: could not {what}: {first_line(error)}") from error


def set_defaults() -> None:
    """Set the environment MLflow reads, wherever the user has not: no telemetry, nothing printed, short retries."""
    defaults = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        # A uv project in the current folder would be copied into every model, its lock with the hosts of its indexes.
        "MLFLOW_UV_AUTO_DETECT": "false",
        "MLFLOW_LOG_UV_FILES": "false",
        # MLflow's own seven retries with doubled waits are minutes for each call to a server that is down.
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    if "MLFLOW_LOGGING_LEVEL" not in os.environ:
        for name in ("alembic", "mlflow.store", "mlflow.pyfunc"):
            logging.getLogger(name).setLevel(logging.WARNING)


def create_sqlite(path: Path, artifact_root: str) -> None:
    """Make a store at `path` whole or not at all: migrated under another name, then linked to its own."""
    import sqlalchemy.exc
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()  # MLflow would try ten times, for two minutes, to open a file it may not write
    except OSError as error:
        raise ValueError(
            f"no MLflow store can be made at {path}: {error.strerror}; choose another workspace"
        ) from error
    try:
        SqlAlchemyStore(f"sqlite:///{partial.absolute()}", artifact_root).engine.dispose()
        path.hardlink_to(partial)
    except FileExistsError:
        pass  # another process was first, and its store is as good
    except sqlalchemy.exc.SQLAlchemyError as error:
        raise ValueError(f"no MLflow store can be made at {path}: {first_line(error)}") from error
    finally:
        partial.unlink(missing_ok=True)


def check_reachable(store: Store) -> None:
    """Try the store once, now, with a short wait: MLflow itself would try a database for two minutes.

    Raises:
        ValueError: nothing answers.
    """
    import requests
    import sqlalchemy
    import sqlalchemy.exc

    try:
        if store.uri.startswith(POSTGRES):
            engine = sqlalchemy.create_engine(store.uri, connect_args={"connect_timeout": 10})
            engine.connect().close()
            engine.dispose()
        else:
            answer = requests.get(f"{store.uri.rstrip('/')}/health", timeout=10)
            answer.raise_for_status()
    except (sqlalchemy.exc.SQLAlchemyError, requests.RequestException) as error:
        raise ValueError(
            f"MLflow store {store} cannot be reached: {first_line(error)}; start it, or use an SQLite file"
        ) from error


def exists_already(error: Exception) -> bool:
    """Whether MLflow refused to make what is there."""
    return getattr(error, "error_code", None) == "RESOURCE_ALREADY_EXISTS"


def is_missing(error: Exception) -> bool:
    """Whether MLflow was asked for what is not there."""
    return getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST"


def until_alone(call: Callable[[], T]) -> T:
    """What `call` returns, which does no harm when made again: another process may write the same rows meanwhile."""
    from mlflow.exceptions import MlflowException

    for _ in range(_MOST_TRIES - 1):
        try:
            return call()
        except MlflowException as error:
            if not any(sign in str(error) for sign in _CONTENTION):
                raise
            time.sleep(random.uniform(0.05, 0.5))
    return call()


def without_password(uri: str) -> str:
    """`uri` as it may be shown."""
    scheme, separator, rest = uri.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}" if "@" in rest else uri


def first_line(error: Exception) -> str:
    """What `error` says, without what libraries append to it or wrap it in."""
    line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    refused = re.search(r"Max retries exceeded.*\[Errno -?\d+\] ([^'\")]+)", line)
    return f"nobody answers there ({refused[1].strip().lower()})" if refused else line
