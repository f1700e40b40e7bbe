"""Select: what a voice does with its Utterances, from its manifests alone; no audio is read again.

Decides by the numbers of each clip and by those of the whole voice: which clips are somebody else's (cosine to the
voice's centre), which hold the same audio, which do not say what their text says, which are held out, which may serve
as Prompt. The result is a table, named by its own digest, and a pure function of its inputs. A changed bound redoes no
unit.
"""

import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gsv_core.metrics.fingerprint import find_copies
from gsv_core.metrics.recognition import edit_distance
from gsv_core.metrics.speaker import centroid_near, robust_centroid
from gsv_core.text.front_end import TextError, phonemise
from gsv_core.text.symbols import MARKS
from pipelines.bounds import Bound, bounds_in, first_broken
from pipelines.rows import RATE_HZ, SELECTION_SCHEMA, SelectionRow, table_of
from pipelines.stage import digest_of
from pipelines.storage import Storage
from pipelines.units import Unit

_FEWEST_TO_HOLD_OUT = 10
_FEWEST_RECORDINGS = 4
"""With fewer recordings one of them would be far more than a tenth, so single clips are held out instead."""
_REASONS = {
    "speaker_consistency": "two_speakers",
    "centroid_cosine": "other_speaker",
    "copy_distance": "near_duplicate",
    "phoneme_error_rate": "pronunciation",
}
"""What a broken bound means, where its number does not say it."""


@dataclass(frozen=True, kw_only=True)
class SelectionBounds:
    """What a clip must meet to be kept: `least_*` and `most_*`; None sets no bound.

    The defaults are for the embedded engines, by the project's own recordings: 112 clips of 14 voices.
    """

    least_snr_db: float | None = 10.0
    """There: 13.7 dB for speech in rumble, 32 in the middle."""
    most_clipped_share: float | None = 0.01
    most_silence_share: float | None = 0.5
    """There: 0.26 at most."""
    least_bandwidth_hz: float | None = 3_000.0
    """A telephone reaches 3,400 Hz."""
    least_phonemes_per_second: float | None = 3.0
    most_phonemes_per_second: float | None = 25.0
    least_confidence: float | None = None
    most_character_error_rate: float | None = 0.85
    """Of a given text against the recognised one. Pocketsphinx errs on 0.1 to 0.7 of the letters of clear speech, so
    this finds texts of something else only; with whisperX 0.3 is sensible."""
    least_language_probability: float | None = None
    least_quality: float | None = None
    """DNSMOS there: 1.1 for speech in rumble, 2.6 at the first quarter, 3.0 in the middle."""
    least_speaker_consistency: float | None = 0.55
    """There: 0.556 the lowest of one speaker; of 150 clips joined from two voices 89 % lie below, of 150 joined from
    two clips of one voice 1."""
    least_centroid_cosine: float | None = 0.75
    """There, with a fifth to half of the clips from other voices: none of its own lost, 0.2 % of the strangers kept.
    Also how near two groups of clips must be to be one speaker."""
    least_copy_distance: float | None = 0.25
    """Share of bits in which two fingerprints differ; `gsv_core.metrics.fingerprint` finds none beyond this."""
    most_phoneme_error_rate: float | None = 0.5
    """Of what was heard against the text: where a voice wants standard pronunciation it rejects, where it has both it
    tells them apart."""


@dataclass(frozen=True, kw_only=True)
class SelectionPolicy:
    """How a voice's data is judged and split."""

    bounds: SelectionBounds = field(default_factory=SelectionBounds)
    held_out_share: float = 0.1
    shortest_prompt_s: float = 3.0
    longest_prompt_s: float = 10.0
    fewest_utterances: int = 4
    least_seconds: float = 10.0

    def __post_init__(self) -> None:
        if not 0 < self.held_out_share < 0.5:
            raise ValueError(f"selection: held_out_share must be between 0 and 0.5, got {self.held_out_share}")
        if self.fewest_utterances < 1:
            raise ValueError(f"selection: fewest_utterances must be at least 1, got {self.fewest_utterances}")
        if not 0 < self.shortest_prompt_s < self.longest_prompt_s:
            raise ValueError(
                "selection: need 0 < shortest_prompt_s < longest_prompt_s, got "
                f"{self.shortest_prompt_s} and {self.longest_prompt_s}"
            )


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is known of a voice beyond its manifests: its policy of pronunciation, and whose clips are wanted.

    `speaker` (K,) is the vector of the voice's reference clip; without one the majority is kept.
    """

    pronunciation: str = "keep"
    speaker: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The decided rows of one voice, with the digest that names them."""

    voice: str
    digest: str
    rows: tuple[SelectionRow, ...]

    def kept(self, split: str | None = None) -> list[SelectionRow]:
        return [row for row in self.rows if row.keep and split in (None, row.split)]

    def seconds(self, split: str | None = None) -> float:
        return sum(row.num_samples for row in self.kept(split)) / RATE_HZ

    @property
    def seconds_left_out(self) -> float:
        return sum(row.num_samples for row in self.rows if not row.keep) / RATE_HZ

    @property
    def left_out(self) -> dict[str, int]:
        """Reason → clips left out for it, the most frequent first."""
        return dict(Counter(row.reason for row in self.rows if not row.keep).most_common())

    def enough(self, policy: SelectionPolicy) -> bool:
        return len(self.kept()) >= policy.fewest_utterances and self.seconds() >= policy.least_seconds


def select(
    voice: str, units: Sequence[Unit], corpus: Storage, policy: SelectionPolicy, wanted: Wanted | None = None
) -> Selection:
    """Decide on every Utterance of the given units, and write the decision down."""
    selection = decide(voice, read_manifests(voice, units, corpus), held_out_before(voice, corpus), policy, wanted)
    path = f"voices/{voice}/selection/{selection.digest}.parquet"
    if not corpus.exists(path):
        buffer = io.BytesIO()
        pq.write_table(table_of(list(selection.rows), SELECTION_SCHEMA), buffer)
        corpus.write(path, buffer.getvalue())
    return selection


def decide(
    voice: str,
    lines: Sequence[Mapping[str, Any]],
    held_before: set[str],
    policy: SelectionPolicy,
    wanted: Wanted | None = None,
    numbers: Sequence[Mapping[str, Any]] | None = None,
) -> Selection:
    """What `select` would write. `held_before`: clips that were ever held out; `numbers`: those of `voice_numbers`."""
    wanted = wanted or Wanted()
    numbers = numbers or voice_numbers(lines, held_before, policy, wanted)
    broken = [first_broken(bounds_of(policy, wanted), entry) for entry in numbers]
    copy_of = {line["clip_id"]: entry["copy_of"] for line, entry in zip(lines, numbers, strict=True)}
    kept = [line for line, bound in zip(lines, broken, strict=True) if bound is None]
    held_out = _held_out(kept, held_before, policy.held_out_share, copy_of)
    rows = []
    for line, bound, entry in zip(lines, broken, numbers, strict=True):
        seconds = line["num_samples"] / RATE_HZ
        split = ("held_out" if line["clip_id"] in held_out else "train") if bound is None else ""
        rows.append(
            SelectionRow(
                clip_id=line["clip_id"],
                unit_id=line["unit_id"],
                keep=bound is None,
                reason=reason_of(bound) if bound else "",
                split=split,
                prompt=split == "train" and policy.shortest_prompt_s <= seconds <= policy.longest_prompt_s,
                num_samples=line["num_samples"],
                centroid_cosine=entry["centroid_cosine"],
                copy_of=entry["copy_of"],
                copy_distance=entry["copy_distance"],
                phoneme_error_rate=entry["phoneme_error_rate"],
                pronunciation=_tag(entry["phoneme_error_rate"], policy, wanted),
            )
        )
    return Selection(voice=voice, digest=digest_of([asdict(row) for row in rows])[:32], rows=tuple(rows))


def bounds_of(policy: SelectionPolicy, wanted: Wanted) -> SelectionBounds:
    """The bounds that count for this voice: only `standard` rejects by pronunciation."""
    limits = vars(policy.bounds)
    return (
        policy.bounds
        if wanted.pronunciation == "standard"
        else SelectionBounds(**{**limits, "most_phoneme_error_rate": None})
    )


def reason_of(bound: Bound) -> str:
    return _REASONS.get(bound.number, bound.number)


def voice_numbers(
    lines: Sequence[Mapping[str, Any]], held_before: set[str], policy: SelectionPolicy, wanted: Wanted
) -> list[dict[str, Any]]:
    """Number → value of each line, for every bound there is; and `copy_of`.

    Of copies the one to keep meets all other bounds, so that none is given up for one that goes itself.
    """
    limits = bounds_of(policy, wanted)
    names = {bound.number for bound in bounds_in(limits)}
    numbers: list[dict[str, Any]] = [{name: line.get(name) for name in names} | {"copy_of": None} for line in lines]
    for entry, cosine in zip(numbers, _centroid_cosines(lines, policy, wanted), strict=True):
        entry["centroid_cosine"] = cosine
    if wanted.pronunciation != "keep":
        for entry, line in zip(numbers, lines, strict=True):
            entry["phoneme_error_rate"] = phoneme_error_rate(line)
    usable = [first_broken(limits, entry) is None for entry in numbers]
    order = sorted(range(len(lines)), key=lambda index: (not usable[index], *_worth(lines[index], held_before)))
    codes = [
        # What goes anyway, and never was held out, need not be compared.
        np.frombuffer(line.get("fingerprint") or b"" if keep or line["clip_id"] in held_before else b"", dtype="<u4")
        for line, keep in zip(lines, usable, strict=True)
    ]
    for index, copy in find_copies(codes, order).items():
        numbers[index]["copy_of"] = lines[copy.of]["clip_id"]
        numbers[index]["copy_distance"] = round(copy.distance, 4)
    return numbers


def phoneme_error_rate(line: Mapping[str, Any]) -> float | None:
    """Edits per phoneme between a given text and what was heard, marks left out; None where there are not both."""
    heard = line.get("recognised_text")
    if not line.get("given") or heard is None:
        return None
    try:
        expected, spoken = (
            [phoneme for phoneme in phonemise(text, line["language"]).phonemes if phoneme not in MARKS]
            for text in (line["text"], heard)
        )
    except TextError:
        return None
    return round(edit_distance(expected, spoken) / len(expected), 4) if expected else None


def read_manifests(voice: str, units: Iterable[Unit], corpus: Storage) -> list[dict[str, Any]]:
    """What selecting needs of some units' manifests, each line with its `unit_id`, in order of clip id.

    A column that an older manifest has not is None.
    """
    lines: list[dict[str, Any]] = []
    for unit in units:
        file = pq.ParquetFile(pa.BufferReader(corpus.read(f"voices/{voice}/manifest/{unit.unit_id}.parquet")))
        table = file.read(columns=[name for name in file.schema_arrow.names if name in _READ])
        lines += [{**line, "unit_id": unit.unit_id} for line in table.to_pylist()]
    return sorted(lines, key=lambda line: line["clip_id"])


def held_out_before(voice: str, corpus: Storage) -> set[str]:
    """Every clip that any earlier selection held out: once held out, never trained on."""
    held: set[str] = set()
    for name in corpus.names(f"voices/{voice}/selection"):
        data = pa.BufferReader(corpus.read(f"voices/{voice}/selection/{name}"))
        table = pq.read_table(data, columns=["clip_id", "split"])
        held |= {row["clip_id"] for row in table.to_pylist() if row["split"] == "held_out"}
    return held


_READ = {bound.number for bound in bounds_in(SelectionBounds())} | {
    "clip_id",
    "recording_id",
    "num_samples",
    "language",
    "text",
    "recognised_text",
    "given",
    "speaker",
    "fingerprint",
    "not_finite",
}


def _centroid_cosines(
    lines: Sequence[Mapping[str, Any]], policy: SelectionPolicy, wanted: Wanted
) -> list[float | None]:
    known = [index for index, line in enumerate(lines) if line["speaker"] is not None]
    cosines: list[float | None] = [None] * len(lines)
    if not known or (wanted.speaker is None and len(known) < 2):
        return cosines
    vectors = np.array([lines[index]["speaker"] for index in known], dtype=np.float32)
    # Without a bound everything is one speaker's.
    limit = policy.bounds.least_centroid_cosine
    least = -1.0 if limit is None else limit
    if wanted.speaker is not None:
        _, found = centroid_near(vectors, wanted.speaker, least)
    else:
        _, found = robust_centroid(vectors, [lines[index]["num_samples"] for index in known], least)
    for index, cosine in zip(known, found, strict=True):
        cosines[index] = round(float(cosine), 6)
    return cosines


def _worth(line: Mapping[str, Any], held_before: set[str]) -> tuple[Any, ...]:
    """Order of copies, the one to keep first: once held out always held out; then better, wider, longer."""
    quality, bandwidth = line.get("quality") or 0.0, line.get("bandwidth_hz") or 0.0
    first = line["clip_id"] not in held_before
    return first, -round(quality, 1), -round(bandwidth, -3), -line["num_samples"], line["clip_id"]


def _tag(error_rate: float | None, policy: SelectionPolicy, wanted: Wanted) -> str | None:
    limit = policy.bounds.most_phoneme_error_rate
    if wanted.pronunciation != "mixed" or error_rate is None or limit is None:
        return None
    return "accented" if error_rate > limit else "standard"


def _held_out(
    lines: Sequence[Mapping[str, Any]], before: set[str], share: float, copy_of: Mapping[str, str | None]
) -> set[str]:
    """Clip ids to hold out: those that ever were, and as many more, in order of digest, as make up the share.

    What holds the same audio stands on one side of the split, whether all of it is still kept or not.
    """
    stands_for = {clip: original or clip for clip, original in copy_of.items()}
    before = {stands_for.get(clip, clip) for clip in before}
    held = {line["clip_id"] for line in lines if stands_for[line["clip_id"]] in before}
    if len(lines) < _FEWEST_TO_HOLD_OUT:
        return held
    recordings = {line["recording_id"] for line in lines}
    key = "recording_id" if len(recordings) >= _FEWEST_RECORDINGS else "clip_id"
    of_clip = {line["clip_id"]: line[key] for line in lines}
    groups: dict[str, list[str]] = {}
    for line in lines:
        groups.setdefault(of_clip[stands_for[line["clip_id"]]], []).append(line["clip_id"])
    wanted = max(2, round(share * len(lines)))
    for name in sorted(groups, key=lambda name: hashlib.sha256(f"held out {name}".encode()).hexdigest()):
        if len(held) >= wanted:
            break
        # A recording far over the share would leave too little to train on.
        if len(held) + len(groups[name]) <= max(wanted, len(lines) // 4):
            held.update(groups[name])
    return held
