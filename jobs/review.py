"""Review: the doubtful Utterances of a corpus → a page to listen to and a table to correct them in.

The table, corrected, goes back as `corrections.tsv` (see `pipelines.corrections`). What was corrected before is in it,
so that the new table may take the place of the old one.
"""

import base64
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
import pyarrow.parquet as pq
from markupsafe import Markup

from gsv_core.text.language_spans import LANGUAGES
from jobs.config import JobConfig
from jobs.prepare import PreparedVoice, open_prepared
from jobs.select import wanted_of
from jobs.workspace import Workspace
from pipelines.bounds import bounds_in
from pipelines.corrections import COLUMNS, FILE_NAME, Corrections, write_table
from pipelines.doubts import doubts
from pipelines.report import page as report_page
from pipelines.rows import RATE_HZ, SelectionRow
from pipelines.selection import bounds_of, decide, held_out_before, read_manifests, voice_numbers
from pipelines.shard_reader import read_examples
from pipelines.storage import Storage

_LOOKS = Path(report_page.__file__).with_name("page.css")
_TEMPLATE = Path(__file__).with_name("review.html")
_SCRIPT = Path(__file__).with_name("review.js")
_STYLE = Path(__file__).with_name("review.css")


@dataclass(frozen=True, kw_only=True)
class DoubtfulClip:
    """One Utterance to listen to: a line of the table, and its audio."""

    voice: str
    unit_id: str
    clip_id: str
    recording_id: str
    uri: str
    start_s: float
    end_s: float
    language: str
    text: str
    recognised_text: str | None
    score: float
    reasons: tuple[str, ...]
    left_out: str
    """Why selection leaves it out as things stand; empty where it is kept."""
    audio: bytes = b""

    @property
    def line(self) -> dict[str, Any]:
        return {
            "clip_id": self.clip_id,
            "recording": self.recording_id,
            "uri": self.uri,
            "start_s": f"{self.start_s:.3f}",
            "end_s": f"{self.end_s:.3f}",
            "doubt": "; ".join(self.reasons),
            "language": self.language,
            "text": self.text,
            "language_before": self.language,
            "text_before": self.text,
        }


@dataclass(frozen=True, kw_only=True)
class Review:
    """What was written: `doubtful` clips of `clips` in all, `corrected` of which were corrected before."""

    page: Path
    table: Path
    clips: int
    doubtful: int
    corrected: int


def review(
    workspace: Workspace, config: JobConfig, *, only: str | None = None, most: int = 100, out: Path | None = None
) -> Review:
    """Write the page and the table for the `most` doubtful clips of all voices, or of the one in `only`.

    Raises:
        ValueError: no corpus, no such voice, `most` below 1, or `out` cannot be written.
    """
    if most < 1:
        raise ValueError(f"--most must be at least 1, got {most}")
    corpus = workspace.storage
    prepared = open_prepared(workspace, config)
    if only is not None and only not in prepared.voices:
        raise ValueError(f"--voice {only}: not in the corpus; there are {', '.join(sorted(prepared.voices)) or 'none'}")
    voices = [prepared.voices[name] for name in sorted(prepared.voices) if only in (None, name)]
    corrected = Corrections()
    for voice in voices:
        path = f"voices/{voice.card.voice}/{FILE_NAME}"
        if corpus.exists(path):
            corrected = Corrections.parse(corpus.read(path), path).over(corrected)
    found = [clip for voice in voices for clip in _doubtful(voice, corpus, config)]
    found = [clip for clip in found if clip.clip_id not in corrected.by_clip]
    found.sort(key=lambda clip: (-clip.score, clip.clip_id))
    shown = with_audio(found[:most], corpus)
    folder = out or workspace.root / "review"
    earlier = _earlier(corrected)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        table, written = folder / FILE_NAME, folder / "index.html"
        _write(table, write_table([*(clip.line for clip in shown), *earlier]))
        _write(written, page(shown, earlier))
    except OSError as error:
        raise ValueError(f"--out {folder}: {error.strerror}; give a folder you may write to") from error
    clips = sum(entry.kept for voice in voices for entry in voice.committed)
    return Review(page=written, table=table, clips=clips, doubtful=len(shown), corrected=len(corrected))


def page(clips: Sequence[DoubtfulClip], earlier: Sequence[dict[str, Any]] = ()) -> str:
    """The whole page as text. It allows itself its own script and nothing else."""
    script = _SCRIPT.read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["audio"] = lambda data: f"data:audio/flac;base64,{base64.b64encode(data).decode()}"
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        clips=clips,
        columns=COLUMNS,
        earlier=write_table(earlier).partition("\n")[2],
        earlier_count=len(earlier),
        file_name=FILE_NAME,
        languages=sorted(LANGUAGES),
        css=Markup(_LOOKS.read_text(encoding="utf-8") + _STYLE.read_text(encoding="utf-8")),
        script=Markup(script),
        script_digest=digest,
    )


def with_audio(clips: Sequence[DoubtfulClip], corpus: Storage) -> list[DoubtfulClip]:
    """The clips with the audio their shards hold, in the same order."""
    audio: dict[str, bytes] = {}
    for voice in dict.fromkeys(clip.voice for clip in clips):
        rows = [_row(clip) for clip in clips if clip.voice == voice]
        audio |= {example.utterance.clip_id: example.flac for example in read_examples(voice, rows, corpus)}
    return [replace(clip, audio=audio[clip.clip_id]) for clip in clips]


def _doubtful(voice: PreparedVoice, corpus: Storage, config: JobConfig) -> list[DoubtfulClip]:
    """Every clip of a voice that anything speaks against."""
    name = voice.card.voice
    wanted, before = wanted_of(voice.card, corpus, config), held_out_before(name, corpus)
    lines = read_manifests(name, voice.units, corpus)
    numbers = voice_numbers(lines, before, config.selection, wanted)
    left_out = {
        row.clip_id: row.reason for row in decide(name, lines, before, config.selection, wanted).rows if not row.keep
    }
    # A copy sounds as good as what it is a copy of.
    bounds = [bound for bound in bounds_in(bounds_of(config.selection, wanted)) if bound.number != "copy_distance"]
    places = _places(voice, corpus)
    found = []
    for line, doubt in zip(lines, doubts(numbers, bounds), strict=True):
        if doubt.score == 0:
            continue
        uri, start = places[line["clip_id"]]
        found.append(
            DoubtfulClip(
                voice=name,
                unit_id=line["unit_id"],
                clip_id=line["clip_id"],
                recording_id=line["recording_id"],
                uri=uri,
                start_s=start / RATE_HZ,
                end_s=(start + line["num_samples"]) / RATE_HZ,
                language=line["language"],
                text=line["text"],
                recognised_text=line["recognised_text"] if line["given"] else None,
                score=doubt.score,
                reasons=doubt.reasons,
                left_out=left_out.get(line["clip_id"], ""),
            )
        )
    return found


def _places(voice: PreparedVoice, corpus: Storage) -> dict[str, tuple[str, int]]:
    """Clip id → (recording's place, first sample)."""
    places = {}
    for unit in voice.units:
        data = corpus.read(f"voices/{unit.voice}/manifest/{unit.unit_id}.parquet")
        for line in pq.read_table(io.BytesIO(data), columns=["clip_id", "uri", "start_sample"]).to_pylist():
            places[line["clip_id"]] = (line["uri"], line["start_sample"])
    return places


def _earlier(corrected: Corrections) -> list[dict[str, Any]]:
    return [
        {
            "clip_id": clip,
            "recording": entry.recording_id,
            "doubt": "corrected before",
            "language": entry.language or "",
            "text": entry.text,
            "verdict": "reject" if entry.rejected else "keep",
        }
        for clip, entry in sorted(corrected.by_clip.items())
    ]


def _row(clip: DoubtfulClip) -> SelectionRow:
    return SelectionRow(
        clip_id=clip.clip_id,
        unit_id=clip.unit_id,
        keep=True,
        reason="",
        split="train",
        prompt=False,
        num_samples=round((clip.end_s - clip.start_s) * RATE_HZ),
    )


def _write(path: Path, text: str) -> None:
    """All or nothing. A file name that is not UTF-8 arrives with lone surrogates, which no page can hold."""
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_bytes(text.encode("utf-8", "replace"))
    temporary.replace(path)
