"""Runs: what was trained and how it went, as runs of one MLflow experiment."""

import json
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.run_folder import HALVES, RunFolder, numbers_of
from jobs.tracking.environment import environment
from jobs.tracking.registry import Registry
from jobs.tracking.spool import Line, Sent, Spool
from jobs.tracking.store import (
    POSTGRES,
    RUN_ID_TAG,
    Store,
    check_reachable,
    create_sqlite,
    exists_already,
    first_line,
    is_missing,
    migrating,
    until_alone,
)

if TYPE_CHECKING:
    from mlflow.entities import Run

DIGEST_DIGITS = 32
"""MLflow takes 36 characters for a dataset's digest; the whole one is a tag."""
ENVIRONMENT_NAME = "environment.json"
"""In a run's folder and among its artefacts: where it was trained."""
STATE_TAG = "gsv.state"
"""`training` or `trained` while a run is told of from its worker, then `complete`; older runs have none."""

_MOST_METRICS, _MOST_PARAMS = 1000, 100  # of one log_batch, by MLflow's own limits
_IDENTITY = ("voice", "release", "base_digest", "corpus_digest", "selection_digest")


class Tracker:
    """Runs of one experiment.

    Args:
        uri: the store; `sqlite:///<workspace>/mlflow.db` by default of the jobs.
        experiment: the corpus.
        prefix: put before a voice's name to name its registered model.
        artifact_root: where files go; by default `mlartifacts` beside an SQLite file, or what the server decides.
        create: whether to make an SQLite file that is not there yet; of many workers none should.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        *,
        prefix: str = "gsv-",
        artifact_root: str | None = None,
        create: bool = True,
    ) -> None:
        self.store = Store(uri)
        self.experiment = experiment
        self.registry = Registry(uri, prefix=prefix)
        self._artifact_root = artifact_root
        self._create = create
        self._experiment_id: str | None = None
        self._lock = threading.Lock()

    def prepare(self) -> str:
        """Make the store and the experiment if they are not there yet, and return the experiment's id.

        A new SQLite file takes seconds of migrations, so call this early, from any thread; later calls wait and return.

        Raises:
            ValueError: the store cannot be reached, made or written, or holds an older schema.
        """
        with self._lock:
            if self._experiment_id is None:
                self._experiment_id = self._prepare()
            return self._experiment_id

    def _prepare(self) -> str:
        root = self._artifact_root
        path = self.store.sqlite_path
        if path is not None and not path.exists() and not self._create:
            raise ValueError(f"there is no MLflow store at {path} yet")
        from mlflow.entities import LifecycleStage
        from mlflow.exceptions import MlflowException

        if path is not None:
            root = root or (path.absolute().parent / "mlartifacts").as_uri()
            with migrating:
                if not path.exists():
                    create_sqlite(path, root)
        else:
            check_reachable(self.store)
            if root is None and self.store.uri.startswith(POSTGRES):
                raise ValueError(
                    f"MLflow store {self.store}: a database needs an artifact root beside it; name a folder or s3://…"
                )
        try:
            client = self.store.client
            found = client.get_experiment_by_name(self.experiment)
            if found is None:
                return str(client.create_experiment(self.experiment, artifact_location=root))
        except MlflowException as error:
            # Another process may have made it in between.
            found = self.store.client.get_experiment_by_name(self.experiment) if exists_already(error) else None
            if found is None:
                raise ValueError(f"MLflow store {self.store} cannot be used: {first_line(error)}") from error
        if found.lifecycle_stage != LifecycleStage.ACTIVE:
            raise ValueError(f"MLflow's experiment {self.experiment!r} was deleted; restore it, or use another name")
        return str(found.experiment_id)

    @contextmanager
    def parent_run(
        self, name: str, tags: Mapping[str, str] | None = None, params: Mapping[str, Any] | None = None
    ) -> Iterator[str]:
        """The id of a new run that stands for one `onboard`; it ends with the block, failed if that raised."""
        with self.store.explained("start the parent run"):
            run_id = self._create_run(name, dict(tags or {}))
            self._log_params(run_id, dict(params or {}))
        status = "FAILED"
        try:
            yield run_id
            status = "FINISHED"
        finally:
            with self.store.explained("end the parent run"):
                self.store.client.set_terminated(run_id, status)

    def log_numbers(self, run_id: str, numbers: Mapping[str, float], *, step: int = 0) -> None:
        """Log `numbers` as metrics of a run."""
        from mlflow.entities import Metric

        with self.store.explained("log numbers"):
            started = self.store.client.get_run(run_id).info.start_time
            self._log_metrics(run_id, [Metric(name, value, started, step) for name, value in numbers.items()])

    def log_files(self, run_id: str, path: Path, folder: str | None = None) -> None:
        """Log a file, or what a folder holds, as artefacts of a run, under `folder`."""
        with self.store.explained(f"log {path.name}"):
            if path.is_dir():
                self.store.client.log_artifacts(run_id, str(path), folder)
            else:
                self.store.client.log_artifact(run_id, str(path), folder)

    def find_run(self, gsv_run_id: str) -> str | None:
        """MLflow's id of the completely logged run with our run id."""
        with self.store.explained("look for a run"):
            run = self._find_run(gsv_run_id)
        return run.info.run_id if run is not None and _is_complete(run) else None

    @property
    def target(self) -> str:
        """This experiment in this store, as spools call it; without the password."""
        return f"{self.store} {self.experiment}"

    def send(self, spool: Spool) -> str:
        """Send what a spool holds and this store has not, oldest first; the id of MLflow's run.

        What has arrived is remembered after every batch, so that a call that fails midway is gone on from by the next.

        Raises:
            ValueError: the store cannot be used, or there is nothing to tell of.
            TrackingError: the store failed; call again.
        """
        self.prepare()
        with self.store.explained(f"send what {spool.run_dir.name} has to tell"):
            sent = spool.sent(self.target)
            if sent is None or not self._is_there(sent.run_id):
                sent = Sent(run_id=self._run_of(spool), offset=0)
            batch: list[Any] = []
            for line, offset in spool.lines(sent.offset):
                if line.metrics is not None:
                    batch += self._metrics_of(line)
                if len(batch) > _MOST_METRICS // 2 or line.metrics is None:
                    self._log_metrics(sent.run_id, batch)
                    batch = []
                    self._apply(sent.run_id, spool, line)
                    sent = replace(sent, offset=offset)
                    spool.mark(self.target, sent)
                else:
                    sent = replace(sent, offset=offset)
            if batch:
                self._log_metrics(sent.run_id, batch)
                spool.mark(self.target, sent)
        return sent.run_id

    def _is_there(self, run_id: str) -> bool:
        """Whether the store, which may have been thrown away and made anew, still has a run."""
        from mlflow.entities import LifecycleStage
        from mlflow.exceptions import MlflowException

        try:
            return bool(self.store.client.get_run(run_id).info.lifecycle_stage == LifecycleStage.ACTIVE)
        except MlflowException as error:
            if not is_missing(error):
                raise
            return False

    @staticmethod
    def _metrics_of(line: Line) -> list[Any]:
        from mlflow.entities import Metric

        return [Metric(name, value, line.time_ms, line.step) for name, value in (line.metrics or {}).items()]

    def _apply(self, run_id: str, spool: Spool, line: Line) -> None:
        """Do what a line that holds no numbers says."""
        client = self.store.client
        if line.file is not None:
            path = spool.folder / line.file
            if path.is_file():
                client.log_artifact(run_id, str(path), str(Path(line.file).parent))
        elif line.status is not None:
            client.set_tag(run_id, STATE_TAG, "trained" if line.status == "FINISHED" else "training")
            if line.status == "RUNNING":
                client.update_run(run_id, line.status)
            else:
                client.set_terminated(run_id, line.status, line.time_ms)

    def _run_of(self, spool: Spool) -> str:
        """MLflow's run of a spool: the one that has its run id, or a new one."""
        record = json.loads((spool.run_dir / "run.json").read_text(encoding="utf-8"))
        run = self._find_run(record["run_id"])
        if run is None:
            started = next((line.time_ms for line, _ in spool.lines()), None)
            tags = {RUN_ID_TAG: record["run_id"], STATE_TAG: "training"}
            tags |= {key: str(record[key]) for key in _IDENTITY if record.get(key) is not None}
            run_id = self._create_once(record["voice"], tags, started)
            self._log_params(run_id, _params_of(record))
            return run_id
        return str(run.info.run_id)

    def _create_once(self, voice: str, tags: dict[str, str], start_ms: int | None) -> str:
        """A new run of a voice, or the one that another process has made of it at this very moment."""
        own = self._create_run(voice, tags, start_ms)
        run = self._find_run(tags[RUN_ID_TAG])
        if run is None or run.info.run_id == own:
            return own
        self.store.client.delete_run(own)
        return str(run.info.run_id)

    def log_voice(self, parent_run_id: str | None, run_dir: Path) -> str:
        """Log the finished run of a voice as a child run, and return its id; one that is there already stays as it is.

        Raises:
            ValueError: `run_dir` holds no finished run.
            TrackingError: the store failed; call again and the same run is completed.
        """
        folder = RunFolder.read(run_dir)
        with self.store.explained(f"log the run of {folder.voice}"):
            return until_alone(lambda: self._log_voice(parent_run_id, folder))

    def _log_voice(self, parent_run_id: str | None, folder: RunFolder) -> str:
        run = self._find_run(folder.run_id)
        if run is not None and _is_complete(run):
            return str(run.info.run_id)
        # The same times whenever it is logged: what an earlier attempt wrote is then overwritten, not doubled.
        ended = int((folder.path / "done.json").stat().st_mtime * 1000)
        started = ended - int(1000 * sum(folder.cost.get(part, 0.0) for part in ("train_seconds", "evaluate_seconds")))
        tags = {RUN_ID_TAG: folder.run_id, STATE_TAG: "training", **_tags_of(folder)}
        if parent_run_id is not None:
            tags["mlflow.parentRunId"] = parent_run_id
        if run is None:
            run_id = self._create_once(folder.voice, tags, started)
        else:
            # It was begun by the worker that trained it, which knows nothing of a parent, or was cut off here.
            run_id = str(run.info.run_id)
            for name, value in tags.items():
                self.store.client.set_tag(run_id, name, value)
        status = "FAILED"
        try:
            told = self._tell_rest(folder)
            self._log_folder(run_id, folder, started, told)
            self.store.client.set_tag(run_id, STATE_TAG, "complete")
            status = "FINISHED"
        finally:
            self.store.client.set_terminated(run_id, status, ended)
        return run_id

    def _tell_rest(self, folder: RunFolder) -> set[tuple[str, int]]:
        """Send what the worker that trained the run could not; the (name, step) of all it told."""
        spool = Spool(folder.path)
        if not spool.path.is_file():
            return set()
        if spool.unsent(self.target):
            self.send(spool)
        return spool.points()

    def _log_folder(self, run_id: str, folder: RunFolder, time_ms: int, told: set[tuple[str, int]]) -> None:
        from mlflow.entities import Metric

        self._log_params(run_id, _params_of(folder.run))
        points = [
            Metric(point.name, point.value, time_ms, point.step)
            for point in folder.curves()
            if (point.name, point.step) not in told
        ]
        scores = [Metric(name, value, time_ms, 0) for name, value in folder.summary().items()]
        self._log_metrics(run_id, [*points, *scores])
        self._log_dataset(run_id, folder)
        with tempfile.TemporaryDirectory() as temporary:
            staged = Path(temporary)
            tables = _write_tables(staged, folder)
            trained_in = folder.path / ENVIRONMENT_NAME
            _write_json(staged / ENVIRONMENT_NAME, _read_json(trained_in) if trained_in.is_file() else environment())
            for name in ("run.json", "curves.jsonl", "scores.json", "cost.json", "prompt.json"):
                shutil.copyfile(folder.path / name, staged / name)
            for extra in (*folder.path.glob("*.html"), *folder.path.glob("prompts.json")):
                shutil.copyfile(extra, staged / extra.name)
            self.store.client.log_artifacts(run_id, str(staged))
        if (folder.path / "audio").is_dir():
            self.store.client.log_artifacts(run_id, str(folder.path / "audio"), "audio")
        self.store.client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps(tables))

    def _log_dataset(self, run_id: str, folder: RunFolder) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        corpus = folder.path.absolute().parents[3]  # <corpus>/voices/<voice>/runs/<run_id>
        sizes = {key: folder.run[key] for key in folder.run if key.startswith(("seconds_", "utterances_"))}
        dataset = Dataset(
            name=f"{corpus.name}/{folder.voice}",
            digest=str(folder.run["corpus_digest"])[:DIGEST_DIGITS],
            source_type="local",
            source=json.dumps({"uri": corpus.as_uri()}),
            profile=json.dumps(sizes),
        )
        self.store.client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])

    def _create_run(self, name: str, tags: dict[str, str], start_ms: int | None = None) -> str:
        tags = {
            "mlflow.source.name": "gsv",
            "mlflow.source.type": "JOB",
            **{key: str(tag) for key, tag in tags.items()},
        }
        run = self.store.client.create_run(self.prepare(), start_time=start_ms, tags=tags, run_name=name)
        return str(run.info.run_id)

    def _find_run(self, gsv_run_id: str) -> "Run | None":
        query = f"tags.`{RUN_ID_TAG}` = '{gsv_run_id}'"
        runs = self.store.client.search_runs(
            [self.prepare()], query, max_results=1, order_by=["attributes.start_time ASC"]
        )
        return runs[0] if runs else None

    def _log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        known = self.store.client.get_run(run_id).data.params  # a param never changes, not even to what it is
        entries = [Param(key, str(value)) for key, value in _flat(params).items() if key not in known]
        for start in range(0, len(entries), _MOST_PARAMS):
            self.store.client.log_batch(run_id, params=entries[start : start + _MOST_PARAMS])

    def _log_metrics(self, run_id: str, metrics: Sequence[Any]) -> None:
        for start in range(0, len(metrics), _MOST_METRICS):
            self.store.client.log_batch(run_id, metrics=metrics[start : start + _MOST_METRICS])


def _tags_of(folder: RunFolder) -> dict[str, str]:
    """How a run is found and read: identities, engines, and what its numbers are worth."""
    tags = {key: folder.run.get(key) for key in _IDENTITY}
    tags |= {f"engine.{part}": name for part, name in folder.engines.items()}
    tags |= {
        "likeness_independent": folder.scores.get("independent"),
        "speech": folder.note,
        "mlflow.note.content": folder.describe(),
    }
    tags |= {f"best.{half}": folder.scores["best"][half] for half in HALVES}
    return {key: str(value) for key, value in tags.items() if value is not None}


def _write_tables(target: Path, folder: RunFolder) -> list[dict[str, str]]:
    """Write the scores of pairs and utterances as MLflow's tables; returns the tag that makes them show as such."""
    pairs = folder.scores["pairs"]
    halves = [{half: pair[half] for half in HALVES} for pair in pairs]
    tables = {
        "pairs.json": [half | numbers_of(pair) for half, pair in zip(halves, pairs)],
        "utterances.json": [
            half | _row_of(utterance) for half, pair in zip(halves, pairs) for utterance in pair.get("utterances") or []
        ],
    }
    for name, rows in tables.items():
        columns = list(dict.fromkeys(key for row in rows for key in row))
        _write_json(target / name, {"columns": columns, "data": [[row.get(key) for key in columns] for row in rows]})
    return [{"path": name, "type": "table"} for name in tables]


def _row_of(utterance: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of a spoken sentence as cells of a table."""
    cells = {**utterance, **(utterance.get("numbers") or {})}
    cells.pop("numbers", None)
    return {name: ", ".join(map(str, cell)) if isinstance(cell, list) else cell for name, cell in cells.items()}


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _params_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """What `run.json` says of how a run was made, without what its tags and its name say."""
    return {key: value for key, value in record.items() if key not in ("schema_version", "run_id")}


def _is_complete(run: "Run") -> bool:
    """Whether all that there is of a run was logged."""
    return run.info.status == "FINISHED" and run.data.tags.get(STATE_TAG, "complete") == "complete"


def _flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined with dots; nulls are left out."""
    flat: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        elif value is not None:
            flat[f"{prefix}{key}"] = value
    return flat
