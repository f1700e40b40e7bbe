"""A table of texts to a wave for each and a table of what became of them, with Ray Data on all workers there are.

A row says `text` and `language`, and may say `voice`, `style`, `reference` (a recording beside the table),
`reference_text`, `reference_language`, `speed` and `seed`. Its wave is named by its number and by the digest of all
that decides it, so a second run speaks only what is new or changed. A row that cannot be spoken is reported, and the
others go on. Every row is spoken by itself: its wave depends on no other.
"""

import csv
import hashlib
import io
import json
import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gsv_core.audio.wav import wav_bytes
from gsv_core.checkpoints.weights import write_atomically, write_json
from jobs.cluster import Cluster
from jobs.progress import Progress
from jobs.synth import Delivery, References, VoiceAddress, hear, manner_of
from jobs.tracking import Registry
from pipelines.engines.choose import EngineConfig
from pipelines.runner import first_cause

if TYPE_CHECKING:
    from jobs.voice_model import Voice

RESULTS_NAME = "results.csv"
ROWS_FOLDER = "rows"
COLUMNS = (
    *("text", "language", "voice", "style", "reference", "reference_text", "reference_language", "speed", "seed"),
)
_RESULT_COLUMNS = ("row", "voice", "language", "text", "wave", "seconds", "rate_hz", "peak", "error")
_VOICES_LOADED = 4
"""Most that a worker keeps in memory."""
_MOST_IN_FLIGHT = 256
"""Blocks that the table is cut into."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One row of the table as it is to be spoken; `error` where it cannot be. `number` counts from 1."""

    number: int
    text: str = ""
    language: str = "auto"
    voice: str = ""
    style: str | None = None
    reference: str | None = None
    reference_text: str | None = None
    reference_language: str | None = None
    speed: float = 1.0
    seed: int = 0
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class TableJob:
    """What all rows have in common: where voices come from, and how a row is said that says nothing of it."""

    tracker_uri: str
    out: Path
    voice: str | None = None
    version: int | None = None
    alias: str | None = None
    models: str | None = None
    prefix: str = "gsv-"
    delivery: Delivery = field(default_factory=Delivery)
    engines: EngineConfig = field(default_factory=EngineConfig)
    least_consistency: float | None = None
    gpus_per_worker: float = 0.0


@dataclass(frozen=True, kw_only=True)
class TableResult:
    """What became of the rows: spoken now, spoken before, and errors by row."""

    spoken: int
    present: int
    errors: Mapping[int, str]
    seconds: float
    results: Path


def synth_table(table: Path, job: TableJob, cluster: Cluster, progress: Progress) -> TableResult:
    """Speak every row of `table` that is not spoken yet. Ray starts only where there is work.

    Raises:
        ValueError: the table or the folder to write into cannot be used.
    """
    lines = list(read_lines(table, voice=job.voice, seed=job.delivery.seed, speed=job.delivery.speed))
    if not lines:
        raise ValueError(f"--table {table}: there is no row in it")
    try:
        (job.out / ROWS_FOLDER).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {job.out}: {error.strerror}") from error
    with ExitStack() as stack:
        voices, unknown = _find_voices(lines, job, stack)
        lines = [replace(line, error=line.error or unknown.get(line.voice)) for line in lines]
        work = {line.number: _named(line, voices[line.voice], job) for line in lines if line.error is None}
        waiting = [line for line in lines if line.number in work and not _is_done(job.out, work[line.number])]
        told: dict[int, str] = {line.number: line.error for line in lines if line.error is not None}
        if waiting:
            cluster.start()
            tasks = [{"line": asdict(line), "name": work[line.number]} for line in _by_voice(waiting)]
            told |= _speak_all(tasks, voices, job, cluster, progress)
    records = [_record(line, told.get(line.number), work.get(line.number), job.out) for line in lines]
    results = job.out / RESULTS_NAME
    write_atomically(results, lambda path: _write_csv(path, records))
    return TableResult(
        spoken=sum(1 for line in waiting if line.number not in told),
        present=len(work) - len(waiting),
        errors=dict(sorted(told.items())),
        seconds=round(sum(record["seconds"] or 0.0 for record in records), 3),
        results=results,
    )


def read_lines(path: Path, *, voice: str | None = None, seed: int = 0, speed: float = 1.0) -> Iterator[Line]:
    """The rows of a CSV, JSONL or Parquet table, those that cannot be used with the reason.

    Raises:
        ValueError: the table itself cannot be read, or has no column `text`.
    """
    for number, row in enumerate(_rows(path), start=1):
        if isinstance(row, str):
            yield Line(number=number, error=row)
            continue
        if number == 1 and "text" not in row:
            raise ValueError(f"--table {path}: a column `text` is needed, got {', '.join(sorted(map(str, row)))}")
        yield _line(number, row, path.parent, Line(number=number, voice=voice or "", seed=seed, speed=speed))


def _rows(path: Path) -> Iterator[dict[str, Any] | str]:
    """Each row, or the reason why a line is none."""
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".jsonl", ".parquet"):
        raise ValueError(f"--table {path}: expected a .csv, .jsonl or .parquet file")
    try:
        data = path.read_bytes()
        if suffix == ".parquet":
            yield from pq.read_table(io.BytesIO(data)).to_pylist()
            return
        text = data.decode("utf-8-sig")
        if suffix == ".csv":
            yield from csv.DictReader(io.StringIO(text))
            return
    except OSError as error:
        raise ValueError(f"--table {path}: {error.strerror}") from error
    except (pa.ArrowInvalid, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"--table {path}: not readable as {suffix[1:]} ({error})") from error
    # Not splitlines(): JSON may hold U+2028 and its like inside a text as they are.
    for line in filter(str.strip, text.split("\n")):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            yield f"not JSON ({error})"
        else:
            yield row if isinstance(row, dict) else f"expected an object, got {type(row).__name__}"


def _line(number: int, row: Mapping[str, Any], folder: Path, defaults: Line) -> Line:
    told = {name: value for name in COLUMNS if (value := _cell(row.get(name))) is not None}
    try:
        speed = float(told.get("speed", defaults.speed))
        seed = int(float(told.get("seed", defaults.seed)))
    except (ValueError, OverflowError):
        return Line(number=number, text=told.get("text", ""), error="speed and seed should be numbers")
    reference = told.get("reference")
    line = Line(
        number=number,
        text=told.get("text", ""),
        language=told.get("language", defaults.language),
        voice=told.get("voice", defaults.voice),
        style=told.get("style"),
        reference=None if reference is None else str(folder / reference),
        reference_text=told.get("reference_text"),
        reference_language=told.get("reference_language"),
        speed=speed,
        seed=seed,
    )
    reason = "no text" if not line.text else "no voice: name one in the row or with --voice" if not line.voice else None
    return line if reason is None else replace(line, error=reason)


def _cell(value: Any) -> str | None:
    """What a cell says; None for one that is empty."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return str(value).strip() or None


def _find_voices(lines: Sequence[Line], job: TableJob, stack: ExitStack) -> tuple[dict[str, "_Found"], dict[str, str]]:
    """Voice → its version and files, and voice → why there is none."""
    registry = Registry(job.tracker_uri, prefix=job.prefix)
    found, unknown = {}, {}
    for voice in dict.fromkeys(line.voice for line in lines if line.error is None):
        try:
            version = registry.version_of(voice, version=job.version, alias=job.alias)
        except ValueError as error:
            unknown[voice] = str(error)
            continue
        folder = stack.enter_context(registry.files_of(version))
        address = VoiceAddress(
            tracker_uri=job.tracker_uri,
            voice=voice,
            version=version.version,
            models=job.models,
            prefix=job.prefix,
        )
        found[voice] = _Found(address=address, folder=folder)
    if not found and unknown:
        raise ValueError(next(iter(unknown.values())))
    return found, unknown


@dataclass(frozen=True, kw_only=True)
class _Found:
    """A version, and where its files are on the machine of the job."""

    address: VoiceAddress
    folder: Path


def _named(line: Line, found: _Found, job: TableJob) -> str:
    """The name of a row's files: what it is spoken of, and what decides how."""
    told = asdict(line) | {"number": None, "version": found.address.version, "delivery": asdict(job.delivery)}
    if line.reference is not None and Path(line.reference).is_file():
        told["reference"] = hashlib.sha256(Path(line.reference).read_bytes()).hexdigest()
    digest = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()
    return f"{line.number:06d}-{digest[:12]}"


def _is_done(out: Path, name: str) -> bool:
    """The record is written last."""
    return (out / ROWS_FOLDER / f"{name}.json").is_file() and (out / f"{name}.wav").is_file()


def _by_voice(lines: Sequence[Line]) -> list[Line]:
    """So that a worker meets few voices."""
    return sorted(lines, key=lambda line: (line.voice, line.number))


def _speak_all(
    tasks: list[dict[str, Any]],
    voices: Mapping[str, _Found],
    job: TableJob,
    cluster: Cluster,
    progress: Progress,
) -> dict[int, str]:
    """Row → error of those that could not be spoken."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    rows = [{"task": json.dumps(task).encode()} for task in tasks]
    dataset: Any = ray.data.from_items(rows, override_num_blocks=min(len(rows), _MOST_IN_FLIGHT))
    dataset = dataset.map_batches(
        _Speaker,
        fn_constructor_args=(dict(voices), job),
        batch_size=None,  # a block at a time: neighbours share their voice
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=min(cluster.workers, len(rows))),
        num_cpus=1,
        num_gpus=job.gpus_per_worker or None,
    )
    errors: dict[int, str] = {}
    with progress.bar("synth") as bar, first_cause():
        bar.update(0, len(tasks), "loading voices")
        for done, answer in enumerate(dataset.iter_rows(), start=1):
            if answer["error"]:
                errors[int(answer["number"])] = str(answer["error"])
            bar.update(done, len(tasks), "")
    return errors


class _Speaker:
    """A worker with the voices it met last; writes a row's wave, and its record behind it."""

    def __init__(self, voices: Mapping[str, _Found], job: TableJob) -> None:
        import torch

        torch.set_num_threads(1)
        self._voices, self._job = voices, job
        self._loaded: OrderedDict[str, Voice] = OrderedDict()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        numbers, errors = [], []
        for packed in batch["task"]:
            task = json.loads(bytes(packed))
            line = Line(**task["line"])
            numbers.append(line.number)
            try:
                speak_line(line, task["name"], self._voice(line.voice), self._job)
            except ValueError as error:
                errors.append(" ".join(str(error).split()))
            else:
                errors.append("")
        return {"number": np.array(numbers), "error": np.array(errors, dtype=object)}

    def _voice(self, name: str) -> "Voice":
        from jobs.voice_model import load_voice

        if name not in self._loaded:
            bases = {voice.synthesiser.base.digest: voice.synthesiser.base for voice in self._loaded.values()}
            found = self._voices[name]
            with ExitStack() as stack:
                folder = found.folder if found.folder.is_dir() else _fetched(found.address, stack)
                base = bases.get(json.loads((folder / "voice.json").read_text(encoding="utf-8"))["base_digest"])
                device = "cuda" if self._job.gpus_per_worker else "cpu"
                self._loaded[name] = load_voice(folder, models=self._job.models, base=base, device=device)
            while len(self._loaded) > _VOICES_LOADED:
                self._loaded.popitem(last=False)
        self._loaded.move_to_end(name)
        return self._loaded[name]


def _fetched(address: VoiceAddress, stack: ExitStack) -> Path:
    """On a machine that does not see the job's files."""
    registry = Registry(address.tracker_uri, prefix=address.prefix)
    return stack.enter_context(registry.files_of(registry.version_of(address.voice, version=address.version)))


def speak_line(line: Line, name: str, voice: "Voice", job: TableJob) -> None:
    """Speak one row into its files.

    Raises:
        ValueError: it cannot be spoken.
    """
    references = None
    if line.reference is not None or line.reference_text is not None:
        references = References(
            paths=() if line.reference is None else (Path(line.reference),),
            text=line.reference_text,
            language=line.reference_language,
            engines=job.engines,
            least_consistency=job.least_consistency,
        )
    heard = hear(references) if references else []
    manner = manner_of(voice, line.style, references, heard)
    said = vars(job.delivery) | {"speed": line.speed, "seed": line.seed}
    pieces = list(voice.stream(line.text, line.language, manner=manner, **said))
    wave, rate_hz = np.concatenate([piece.wave for piece in pieces]), pieces[0].rate_hz
    data = wav_bytes(wave, rate_hz)
    write_atomically(job.out / f"{name}.wav", lambda path: _write_bytes(path, data))
    record = {
        "seconds": round(len(wave) / rate_hz, 3),
        "rate_hz": rate_hz,
        "peak": round(float(np.abs(wave).max(initial=0.0)), 4),
    }
    write_json(job.out / ROWS_FOLDER / f"{name}.json", record)


def _record(line: Line, error: str | None, name: str | None, out: Path) -> dict[str, Any]:
    """One line of the results."""
    row: dict[str, Any] = {"row": line.number, "voice": line.voice, "language": line.language, "text": line.text}
    if error is None and name is not None:
        told = json.loads((out / ROWS_FOLDER / f"{name}.json").read_text(encoding="utf-8"))
        return row | {"wave": f"{name}.wav", **told, "error": ""}
    return row | {"wave": "", "seconds": None, "rate_hz": None, "peak": None, "error": error or ""}


def _write_csv(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, _RESULT_COLUMNS)
        writer.writeheader()
        writer.writerows(records)


def _write_bytes(path: Path, data: bytes) -> None:
    path.write_bytes(data)
