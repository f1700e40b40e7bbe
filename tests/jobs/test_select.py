"""A corpus of two voices as an earlier `prepare` left it: what is kept of it, and what another bound would do."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gsv_core.checkpoints.base import load_base
from gsv_core.checkpoints.releases import Release
from jobs.config import JobConfig, load_config
from jobs.select import left_out_by_selection, select_voices, try_bounds
from jobs.workspace import Workspace
from pipelines.rows import Screening
from pipelines.storage import LocalStorage
from pipelines.voice_card import VoiceCard
from tests.pipelines.made_corpus import commit_unit, example

CLIPS = 8


def make_corpus(root: Path, **cards: dict[str, Any]) -> Workspace:
    """Voices `anna` and `ben`, eight clips of 3 s each; SNR is 5, 10, ... dB; the last clip is the first over again."""
    workspace = Workspace.open(root)
    corpus = LocalStorage(workspace.corpus)
    random = np.random.default_rng(0)
    audio = [random.integers(0, 2**32, 90, dtype=np.uint32).astype("<u4").tobytes() for _ in range(CLIPS - 1)]
    units = []
    for voice in ("anna", "ben"):
        rows = [
            replace(
                example(number, voice),
                screening=Screening(snr_db=5.0 * (number + 1), quality=2.0 if number % 2 else None),
                fingerprint=audio[number % (CLIPS - 1)],
                not_finite=("quality",) if number == 3 else (),
            )
            for number in range(CLIPS)
        ]
        units.append(commit_unit(corpus, voice=voice, examples=rows))
        card = VoiceCard(voice=voice, display_name=voice, **cards.get(voice, {}))
        corpus.write(f"voices/{voice}/voice.json", json.dumps(asdict(card)).encode())
    description = {
        "units": sorted(unit.unit_id for unit in units),
        "voices": ["anna", "ben"],
        "corpus_digest": "c" * 64,
        "release": "nano",
        "base_digest": load_base(Release.NANO).digest,
    }
    corpus.write("corpus.json", json.dumps(description).encode())
    return workspace


def files_of(workspace: Workspace) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in workspace.corpus.rglob("*") if path.is_file()}


def test_what_is_kept_is_written_and_says_why_the_rest_is_not(tmp_path: Path) -> None:
    workspace = make_corpus(tmp_path)
    anna, ben = select_voices(workspace, JobConfig())
    assert (anna.clips, anna.kept, anna.kept_seconds) == (8, 7, 21.0)
    # The first clip breaks the bound on noise, so its copy is the one that stays.
    assert anna.left_out == {"snr_db": 1}
    assert anna.left_out_seconds == 3.0
    assert anna.not_finite == {"quality": 1}
    assert anna.enough
    assert (workspace.corpus / "voices" / "anna" / "selection" / f"{anna.digest}.parquet").is_file()
    assert ben.kept == 7


def test_a_dry_run_counts_for_every_bound_and_writes_nothing(tmp_path: Path) -> None:
    workspace = make_corpus(tmp_path)
    before = files_of(workspace)
    config = load_config(
        None, ["selection.bounds.least_snr_db=20", "selection.bounds.least_quality=2.5", "flow.bounds.least_snr_db=6"]
    )
    voices, effects = try_bounds(workspace, config, only=["anna"])
    assert files_of(workspace) == before
    assert [voice.voice for voice in voices] == ["anna"]
    by_name = {effect.bound: effect for effect in effects}
    snr = by_name["selection.bounds.least_snr_db"]
    assert (snr.limit, snr.measured, snr.rejected, snr.rejected_seconds) == (20.0, 8, 3, 9.0)
    assert (snr.alone, snr.alone_seconds) == (2, 6.0)  # the clip of 10 dB is of low quality, too
    assert snr.spread == (5.0, 6.75, 22.5, 38.25, 40.0)
    quality = by_name["selection.bounds.least_quality"]
    assert (quality.measured, quality.rejected, quality.alone) == (4, 4, 3)
    assert (by_name["flow.bounds.least_snr_db"].rejected, by_name["flow.bounds.least_bandwidth_hz"].measured) == (1, 0)
    assert by_name["selection.bounds.least_bandwidth_hz"].spread == ()
    assert voices[0].left_out == {"snr_db": 3, "quality": 3}
    assert select_voices(workspace, config)[0] == voices[0]


def test_a_copy_names_the_clip_that_stands_for_it(tmp_path: Path) -> None:
    workspace = make_corpus(tmp_path)
    config = load_config(None, ["selection.bounds.least_snr_db=null"])
    voices, effects = try_bounds(workspace, config)
    assert [voice.left_out for voice in voices] == [{"near_duplicate": 1}] * 2
    assert {effect.rejected for effect in effects if effect.bound.endswith("least_copy_distance")} == {1}


def test_a_voice_with_a_reference_needs_it_heard(tmp_path: Path) -> None:
    workspace = make_corpus(tmp_path, anna={"reference": "a.wav", "reference_digest": "d" * 64})
    with pytest.raises(ValueError, match="prepare the corpus again"):
        select_voices(workspace, JobConfig())
    assert [voice.voice for voice in select_voices(workspace, JobConfig(), only=["ben"])] == ["ben"]


def test_an_unknown_voice_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--voice cleo: not in the corpus; there are anna, ben"):
        try_bounds(make_corpus(tmp_path), JobConfig(), only=["cleo"])


def test_what_a_selection_leaves_out_is_said_in_words(tmp_path: Path) -> None:
    from pipelines.selection import SelectionPolicy, decide

    lines = [
        {"clip_id": str(number), "unit_id": "u", "recording_id": "r", "num_samples": 32_000, "speaker": speaker}
        for number, speaker in enumerate([[1.0, 0.0]] * 3 + [[0.0, 1.0]])
    ]
    lines[0]["snr_db"] = 1.0
    said = list(left_out_by_selection(decide("anna", lines, set(), SelectionPolicy())))
    assert said == [
        ("snr_db", 1, "clip 0; `gsv select --dry-run` shows the bounds"),
        ("other_speaker", 1, "clip 3: cosine 0.00 to the voice's centre"),
    ]
