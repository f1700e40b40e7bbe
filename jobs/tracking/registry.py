"""The registry: what may be spoken with. A registered model per voice, a version per run.

A version comes last, when all its files are there, so that none is ever seen half uploaded. Who was champion and why
is kept in tags of the registered model, one for each move.
"""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.tracking.store import (
    REPORT_FOLDER,
    RUN_ID_TAG,
    Store,
    check_reachable,
    exists_already,
    is_missing,
    until_alone,
)

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import ModelSignature

CHALLENGER = "challenger"
CHAMPION = "champion"
FILES_NAME = "voice"
"""The folder of the voice's own files in a version, and the name MLflow hands it over by."""
MOVE_TAG = "champion.move."
"""Before the time of a move in the name of its tag."""


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
class Move:
    """One move of a champion: of which alias, from which version (None: there was none) to which, and why."""

    alias: str
    before: int | None
    after: int
    when: str
    who: str
    why: str
    kind: str = "promote"
    """`promote`, `force` or `rollback`."""


@dataclass(frozen=True, kw_only=True)
class Traces:
    """What a store holds of one voice. Runs, models and reports by their id, with the place of their files."""

    registered: bool = False
    versions: int = 0
    runs: Mapping[str, str] = field(default_factory=dict)
    logged_models: Mapping[str, str] = field(default_factory=dict)
    reports: Mapping[str, str] = field(default_factory=dict)
    """Of whole jobs, which may show it among other voices."""


class Registry:
    """Voices as registered models, `<prefix><voice>`, and their versions."""

    def __init__(self, uri: str, *, prefix: str = "gsv-") -> None:
        self.store = Store(uri)
        self.prefix = prefix
        self._answered = False

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
            versions = self.store.client.search_model_versions(query)
            return min(map(_registered, versions), key=lambda version: version.version, default=None)

    def version_of(self, voice: str, *, version: int | None = None, alias: str | None = None) -> RegisteredVersion:
        """One version of a voice: the given one, the one an alias points to, or the newest.

        Raises:
            ValueError: there is no such voice, version or alias; the message lists what there is.
        """
        if version is not None and alias is not None:
            raise ValueError(f"name a version or an alias, not both; got {version} and {alias!r}")
        self._check_present()
        with self.store.explained(f"look for {voice}"):
            versions = self._all_versions(self.name_of(voice))
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
        from mlflow.exceptions import MlflowException

        with self.store.explained(f"register {self.name_of(voice)}"):
            try:
                registered = self._add_version(voice, run_id, package, tags, description)
            except MlflowException:
                # Another process that registers the same run at this moment clears away what others have begun.
                present = self.find(voice, tags["run_id"])
                if present is None:
                    raise
                registered = present
        self.point(registered, aliases)
        return registered

    def _add_version(
        self, voice: str, run_id: str, package: VoicePackage, tags: Mapping[str, str], description: str
    ) -> RegisteredVersion:
        """A version of the run: this one, or the one that another process made just before."""
        name, client = self.name_of(voice), self.store.client
        model = self._store_model(name, run_id, package, tags)
        self._ensure_model(name, voice)
        version = until_alone(
            lambda: client.create_model_version(
                name,
                model.artifact_location,
                run_id=run_id,
                tags=dict(tags),
                description=description,
                model_id=model.model_id,
            )
        )
        own = _registered(version)
        registered = self.find(voice, tags["run_id"]) or own
        if registered.version < own.version:
            client.delete_model_version(name, str(own.version))
            client.delete_logged_model(model.model_id)
            return registered
        made = json.dumps([{"name": name, "version": str(own.version)}])
        client.set_logged_model_tags(model.model_id, {"mlflow.modelVersions": made})
        query = f"name = '{name}' AND source_run_id = '{run_id}'"
        for other in client.search_logged_models([model.experiment_id], query):
            if other.model_id != model.model_id:  # of an attempt that was cut off before its version
                client.delete_logged_model(other.model_id)
        return own

    def point(self, version: RegisteredVersion, aliases: Sequence[str]) -> None:
        """Let `aliases` point to `version`, or to a newer one that is there.

        Looks again after it wrote: of several processes that do this at once the last one finds the newest version, and
        none leaves an alias on a version that was taken away while it wrote (the second one of a run that two processes
        registered).
        """
        from mlflow.exceptions import MlflowException

        with self.store.explained(f"set the aliases of {version.uri}"):
            client = self.store.client
            for alias in aliases:
                while True:
                    newest = max(self._versions_like(version, alias), default=version.version)
                    if int(client.get_registered_model(version.name).aliases.get(alias, 0)) == newest:
                        break
                    try:
                        until_alone(partial(client.set_registered_model_alias, version.name, alias, str(newest)))
                    except MlflowException as error:
                        if not is_missing(error):
                            raise

    def _versions_like(self, version: RegisteredVersion, alias: str) -> list[int]:
        """The versions that `alias`, which may end in a release, could point to."""
        versions = self._all_versions(version.name)
        release = alias.removeprefix(f"{CHALLENGER}-") if alias.startswith(f"{CHALLENGER}-") else None
        return [int(entry.version) for entry in versions if release in (None, entry.tags.get("release"))]

    def _all_versions(self, name: str) -> "list[ModelVersion]":
        query = f"name = '{_quoted(name)}'"
        return _all_pages(lambda token: self.store.client.search_model_versions(query, page_token=token))

    def versions(self, voice: str) -> dict[int, dict[str, str]]:
        """Version → its tags, of every version of a voice."""
        with self.store.explained(f"list the versions of {voice}"):
            return {int(entry.version): dict(entry.tags) for entry in self._all_versions(self.name_of(voice))}

    def aliases(self, voice: str) -> dict[str, int]:
        """Alias → version of a voice that is registered."""
        with self.store.explained(f"look for the aliases of {voice}"):
            aliases = self.store.client.get_registered_model(self.name_of(voice)).aliases
        return {alias: int(version) for alias, version in aliases.items()}

    def tags_of(self, version: RegisteredVersion) -> dict[str, str]:
        """What a version is found and judged by."""
        with self.store.explained(f"read {version.uri}"):
            return dict(self.store.client.get_model_version(version.name, str(version.version)).tags)

    def tag(self, version: RegisteredVersion, tags: Mapping[str, str]) -> None:
        """Write `tags` on a version."""
        with self.store.explained(f"tag {version.uri}"):
            for name, value in tags.items():
                self.store.client.set_model_version_tag(version.name, str(version.version), name, value)

    def run_file(self, version: RegisteredVersion, name: str) -> Any:
        """A JSON file among the artefacts of the run that a version was made of; None where it has no such file."""
        import mlflow.artifacts

        with tempfile.TemporaryDirectory() as temporary, self.store.explained(f"read {name} of {version.uri}"):
            present = {entry.path for entry in self.store.client.list_artifacts(version.run_id)}
            if name not in present:
                return None
            path = mlflow.artifacts.download_artifacts(
                run_id=version.run_id, artifact_path=name, dst_path=temporary, tracking_uri=self.store.uri
            )
            return json.loads(Path(path).read_text(encoding="utf-8"))

    def moves(self, voice: str) -> list[Move]:
        """Every move of the voice's champions, the oldest first."""
        with self.store.explained(f"read the history of {voice}"):
            tags = self.store.client.get_registered_model(self.name_of(voice)).tags
        return [Move(**json.loads(tags[name])) for name in sorted(tags) if name.startswith(MOVE_TAG)]

    def move(self, voice: str, move: Move) -> None:
        """Let a champion point to another version; what is remembered of it is written before."""
        name = self.name_of(voice)
        with self.store.explained(f"move {move.alias} of {voice}"):
            client = self.store.client
            # To the microsecond, so that two moves of one command keep their order.
            stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
            client.set_registered_model_tag(name, f"{MOVE_TAG}{stamp}", json.dumps(asdict(move), ensure_ascii=False))
            until_alone(lambda: client.set_registered_model_alias(name, move.alias, str(move.after)))

    def describe(self, voice: str, description: str) -> None:
        """Write what MLflow's page of the whole voice says, in Markdown."""
        with self.store.explained(f"describe {voice}"):
            self.store.client.update_registered_model(self.name_of(voice), description)

    def _store_model(self, name: str, run_id: str, package: VoicePackage, tags: Mapping[str, str]) -> Any:
        """Save `package` as a logged model of the run, with the run's scores, and return it."""
        import mlflow.pyfunc
        import pandas as pd
        from mlflow.entities import LoggedModelOutput, Metric
        from mlflow.models import Model

        client = self.store.client
        run = client.get_run(run_id)
        experiment_id = run.info.experiment_id
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
                # Of a mapping of columns MLflow would make one row that holds lists.
                input_example=pd.DataFrame(package.example),
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
            if not exists_already(error):
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
        """See once that there is a store and that it answers: MLflow itself would ask a dead one again and again."""
        path = self.store.sqlite_path
        if path is not None and not path.is_file():
            raise ValueError(f"no MLflow store at {path}; register a voice first with `gsv onboard`")
        if path is None and not self._answered:
            check_reachable(self.store)
            self._answered = True


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


def _registered(version: "ModelVersion") -> RegisteredVersion:
    return RegisteredVersion(
        name=version.name,
        version=int(version.version),
        run_id=str(version.run_id),
        uri=f"models:/{version.name}/{version.version}",
    )


def _quoted(name: str) -> str:
    """`name` for a filter of MLflow's, which knows no escape: a name with a quote is nobody's."""
    return name.replace("'", "")
