from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from pipelines.bounds import bounds_in
from pipelines.engines.embedded_verifier import ResemblyzerVerifier
from pipelines.rows import MANIFEST_SCHEMA, RATE_HZ, SELECTION_SCHEMA, Screening, Source
from pipelines.selection import (
    Selection,
    SelectionBounds,
    SelectionPolicy,
    Wanted,
    phoneme_error_rate,
    read_manifests,
    select,
)
from pipelines.stages.shard import parquet_bytes
from pipelines.storage import LocalStorage
from pipelines.units import Unit
from tests.shared import shared_path

POLICY = SelectionPolicy()


def unit_of(corpus: LocalStorage, name: str, lines: list[dict[str, object]]) -> Unit:
    """A unit of voice `anna` whose manifest has the given lines."""
    unit = Unit.of([Source(voice="anna", uri=name, digest=name, size_bytes=1)], "config")
    full = [{**dict.fromkeys(MANIFEST_SCHEMA.names), **line} for line in lines]
    table = pa.Table.from_pylist(full, schema=MANIFEST_SCHEMA)
    corpus.write(f"voices/anna/manifest/{unit.unit_id}.parquet", parquet_bytes(table))
    return unit


def line(
    number: int, *, recording: str = "r", speaker: list[float] | None = None, seconds: float = 5, **numbers: object
) -> dict[str, object]:
    noise = np.random.default_rng(number).normal(size=8) * 0.1
    vector = np.array(speaker or [1, 0, 0, 0, 0, 0, 0, 0]) + noise
    return {
        "clip_id": f"clip{number:03d}",
        "recording_id": recording,
        "voice": "anna",
        "start_sample": 0,
        "num_samples": round(seconds * RATE_HZ),
        "speaker": (vector / np.linalg.norm(vector)).tolist(),
        **numbers,
    }


def audio(seed: int, first: int = 0, last: int = 150, wrong_bits: float = 0.0) -> bytes:
    """The fingerprint of a stretch of some audio, heard with mistakes."""
    random = np.random.default_rng(seed)
    codes = random.integers(0, 2**32, 150, dtype=np.uint32)[first:last]
    flips = np.packbits(np.random.default_rng(first).random((len(codes), 32)) < wrong_bits, axis=1).view("<u4")[:, 0]
    return (codes ^ flips).astype("<u4").tobytes()


def selected(
    tmp_path: Path, lines: list[dict[str, object]], *, wanted: Wanted | None = None, **bounds: float | None
) -> Selection:
    corpus = LocalStorage(tmp_path)
    policy = SelectionPolicy(bounds=SelectionBounds(**bounds))
    return select("anna", [unit_of(corpus, "a", lines)], corpus, policy, wanted)


def left_out(selection: Selection) -> dict[str, str]:
    return {row.clip_id: row.reason for row in selection.rows if not row.keep}


def test_a_foreign_voice_is_left_out(tmp_path: Path) -> None:
    corpus = LocalStorage(tmp_path)
    foreign = [line(20 + number, speaker=[0, 1, 0, 0, 0, 0, 0, 0]) for number in range(3)]
    unit = unit_of(corpus, "a", [*(line(number) for number in range(12)), *foreign])
    selection = select("anna", [unit], corpus, POLICY)
    assert {row.clip_id for row in selection.rows if row.reason == "other_speaker"} == {"clip020", "clip021", "clip022"}
    assert len(selection.kept()) == 12
    assert selection.left_out == {"other_speaker": 3}
    assert selection.seconds_left_out == 15
    assert all(row.split == "" for row in selection.rows if not row.keep)


def test_of_two_equal_speakers_one_is_kept(tmp_path: Path) -> None:
    lines = [line(number, speaker=[number % 2, (number + 1) % 2, 0, 0, 0, 0, 0, 0]) for number in range(12)]
    assert left_out(selected(tmp_path, lines)) == {f"clip{number:03d}": "other_speaker" for number in range(1, 12, 2)}


def test_a_reference_keeps_its_speaker_though_few_clips_are_that_ones(tmp_path: Path) -> None:
    theirs = [line(20 + number, speaker=[0, 1, 0, 0, 0, 0, 0, 0]) for number in range(3)]
    lines = [*(line(number) for number in range(12)), *theirs]
    wanted = Wanted(speaker=np.array([0.1, 1, 0, 0.1, 0, 0, 0, 0], dtype=np.float32))
    assert [row.clip_id for row in selected(tmp_path, lines, wanted=wanted).kept()] == ["clip020", "clip021", "clip022"]
    nobody = Wanted(speaker=np.eye(8, dtype=np.float32)[5])
    assert selected(tmp_path, lines, wanted=nobody).left_out == {"other_speaker": 15}


@pytest.mark.parametrize("strangers", [2, 4])
def test_real_voices_in_one_folder_fall_apart(tmp_path: Path, strangers: int) -> None:
    """Four clips of one reader, as many or fewer of another: an equal share goes to whoever speaks longer."""
    verifier = ResemblyzerVerifier()
    lines = []
    own = sorted(shared_path("recordings/voices/lj/clips").glob("*.wav"))
    others = sorted(shared_path("recordings/voices/aishell_S0150/clips").glob("*.wav"))
    for number, path in enumerate([*own, *others[:strangers]]):
        wave, rate_hz = soundfile.read(path, dtype="float32")
        made = line(number, seconds=len(wave) / rate_hz)
        lines.append({**made, "speaker": verifier.embed(wave, rate_hz).tolist()})
    selection = selected(tmp_path, lines)
    assert left_out(selection) == {f"clip{4 + number:03d}": "other_speaker" for number in range(strangers)}


def test_every_bound_is_on_a_number_that_some_table_has() -> None:
    stored = set(MANIFEST_SCHEMA.names) | set(SELECTION_SCHEMA.names)
    assert {bound.number for bound in bounds_in(SelectionBounds())} <= stored
    unbound = {"level_lufs"}
    assert {name for name in vars(Screening()) if name not in unbound} <= {
        bound.number for bound in bounds_in(SelectionBounds())
    }


@pytest.mark.parametrize(
    ("number", "bad", "good", "reason"),
    [
        ("snr_db", 3.0, 30.0, "snr_db"),
        ("clipped_share", 0.02, 0.0, "clipped_share"),
        ("silence_share", 0.6, 0.2, "silence_share"),
        ("bandwidth_hz", 2_000.0, 8_000.0, "bandwidth_hz"),
        ("phonemes_per_second", 30.0, 12.0, "phonemes_per_second"),
        ("character_error_rate", 0.9, 0.2, "character_error_rate"),
        ("speaker_consistency", 0.4, 0.7, "two_speakers"),
    ],
)
def test_a_clip_beyond_a_bound_is_left_out_and_one_without_the_number_is_not(
    tmp_path: Path, number: str, bad: float, good: float, reason: str
) -> None:
    lines = [line(0, **{number: bad}), line(1, **{number: good}), line(2), line(3)]
    assert left_out(selected(tmp_path, lines)) == {"clip000": reason}


def test_a_changed_bound_changes_the_selection_and_no_unit(tmp_path: Path) -> None:
    lines = [line(number, quality=number / 2) for number in range(1, 9)]
    before = selected(tmp_path, lines)
    files = {path: path.read_bytes() for path in tmp_path.rglob("manifest/*")}
    after = selected(tmp_path, lines, least_quality=2.0)
    assert (len(before.kept()), len(after.kept())) == (8, 5)
    assert {path: path.read_bytes() for path in tmp_path.rglob("manifest/*")} == files
    assert before.digest != after.digest
    assert selected(tmp_path, lines, least_quality=1.9).digest == after.digest  # what counts is what it does


def test_of_the_same_audio_the_better_clip_stays_and_the_other_names_it(tmp_path: Path) -> None:
    lines = [
        line(0, quality=2.0, fingerprint=audio(1)),
        line(1, quality=3.0, fingerprint=audio(1, wrong_bits=0.1)),
        line(2, quality=3.0, fingerprint=audio(1, 20, 140, wrong_bits=0.1), seconds=4),
        *(line(number, fingerprint=audio(number)) for number in range(3, 9)),
    ]
    selection = selected(tmp_path, lines)
    assert left_out(selection) == {"clip000": "near_duplicate", "clip002": "near_duplicate"}
    assert {row.copy_of for row in selection.rows} == {"clip001", None}
    assert selection.rows[0].copy_distance == pytest.approx(0.1, abs=0.02)


def test_of_the_same_audio_the_one_that_meets_the_bounds_stays(tmp_path: Path) -> None:
    lines = [
        line(0, quality=3.0, snr_db=2.0, fingerprint=audio(1)),
        line(1, quality=2.0, fingerprint=audio(1)),
        line(2),
    ]
    assert left_out(selected(tmp_path, lines)) == {"clip000": "snr_db"}


def test_copies_that_are_kept_stand_on_one_side_of_the_split(tmp_path: Path) -> None:
    lines = [line(number, fingerprint=audio(number // 3)) for number in range(60)]
    selection = selected(tmp_path, lines, least_copy_distance=None)
    held = {int(row.clip_id[4:]) // 3 for row in selection.kept("held_out")}
    assert held
    assert len(selection.kept()) == 60
    assert not held & {int(row.clip_id[4:]) // 3 for row in selection.kept("train")}


@pytest.mark.parametrize("later", [{"least_snr_db": 40.0}, {}])
def test_a_copy_of_what_was_ever_held_out_is_never_trained_on(tmp_path: Path, later: dict[str, float]) -> None:
    """Whether the clip itself is still kept (then it stays) or not (then its copy is held out)."""
    corpus = LocalStorage(tmp_path)
    first = unit_of(corpus, "a", [line(number, snr_db=30.0, fingerprint=audio(number)) for number in range(20)])
    held = {row.clip_id for row in select("anna", [first], corpus, POLICY).kept("held_out")}
    copies = [line(100 + number, quality=4.0, snr_db=50.0, fingerprint=audio(number)) for number in range(20)]
    policy = SelectionPolicy(bounds=SelectionBounds(**later))
    after = select("anna", [first, unit_of(corpus, "b", copies)], corpus, policy)
    numbers = {int(clip[4:]) for clip in held}
    assert not numbers & {int(row.clip_id[4:]) % 100 for row in after.kept("train")}
    expected = {clip_id.replace("clip0", "clip1") for clip_id in held} if later else held
    assert expected <= {row.clip_id for row in after.kept("held_out")}


SAID = {"language": "en", "given": True, "text": "the weather is bright and cold"}


def test_pronunciation_is_kept_rejected_or_tagged_as_the_voice_wants(tmp_path: Path) -> None:
    texts = ["the weather is bright and cold", "zat fezza eez brat un gulp", None]
    lines = [line(number, **SAID, recognised_text=text) for number, text in enumerate(texts)] + [line(9)]
    kept = selected(tmp_path, lines)
    assert left_out(kept) == {}
    assert all(row.phoneme_error_rate is None and row.pronunciation is None for row in kept.rows)
    standard = selected(tmp_path, lines, wanted=Wanted(pronunciation="standard"))
    assert left_out(standard) == {"clip001": "pronunciation"}
    mixed = selected(tmp_path, lines, wanted=Wanted(pronunciation="mixed"))
    assert left_out(mixed) == {}
    assert [row.pronunciation for row in mixed.rows] == ["standard", "accented", None, None]


def test_phonemes_are_compared_and_not_spelling() -> None:
    assert phoneme_error_rate({**SAID, "text": "I knew two.", "recognised_text": "I new too"}) == 0.0
    assert phoneme_error_rate({**SAID, "given": False, "recognised_text": "x"}) is None
    assert phoneme_error_rate({**SAID, "recognised_text": "…"}) is None
    assert phoneme_error_rate({**SAID, "language": "fr", "recognised_text": "bon"}) is None


def test_a_manifest_of_yesterday_is_read_with_nulls_for_what_it_lacks(tmp_path: Path) -> None:
    corpus = LocalStorage(tmp_path)
    unit = unit_of(corpus, "a", [line(number) for number in range(6)])
    path = f"voices/anna/manifest/{unit.unit_id}.parquet"
    table = pq.read_table(pa.BufferReader(corpus.read(path)))
    newer = ["speaker_consistency", "fingerprint", "not_finite"]
    corpus.write(path, parquet_bytes(table.drop_columns(newer)))
    assert len(select("anna", [unit], corpus, POLICY).kept()) == 6
    assert "fingerprint" not in read_manifests("anna", [unit], corpus)[0]


def test_a_tenth_is_held_out_and_nothing_of_few(tmp_path: Path) -> None:
    corpus = LocalStorage(tmp_path)
    unit = unit_of(corpus, "a", [line(number) for number in range(30)])
    assert len(select("anna", [unit], corpus, POLICY).kept("held_out")) == 3
    few = unit_of(corpus, "b", [line(number + 100) for number in range(9)])
    assert not select("anna", [few], LocalStorage(tmp_path), POLICY).kept("held_out")


def test_with_many_recordings_whole_recordings_are_held_out(tmp_path: Path) -> None:
    corpus = LocalStorage(tmp_path)
    unit = unit_of(corpus, "a", [line(number, recording=f"r{number // 3}") for number in range(30)])
    selection = select("anna", [unit], corpus, POLICY)
    held = {int(row.clip_id[4:]) // 3 for row in selection.kept("held_out")}
    trained = {int(row.clip_id[4:]) // 3 for row in selection.kept("train")}
    assert held
    assert not held & trained


def test_what_was_held_out_stays_so_as_the_voice_grows(tmp_path: Path) -> None:
    corpus = LocalStorage(tmp_path)
    first = unit_of(corpus, "a", [line(number) for number in range(20)])
    before = {row.clip_id for row in select("anna", [first], corpus, POLICY).kept("held_out")}
    second = unit_of(corpus, "b", [line(number, recording=f"q{number}") for number in range(20, 90)])
    after = {row.clip_id for row in select("anna", [first, second], corpus, POLICY).kept("held_out")}
    assert before
    assert before < after


def test_the_same_manifests_give_the_same_selection_and_file(tmp_path: Path) -> None:
    corpus = LocalStorage(tmp_path)
    unit = unit_of(corpus, "a", [line(number) for number in range(20)])
    one = select("anna", [unit], corpus, POLICY)
    assert select("anna", [unit], corpus, POLICY) == one
    assert corpus.names("voices/anna/selection") == [f"{one.digest}.parquet"]


def test_prompts_come_from_the_training_split_and_have_their_length(tmp_path: Path) -> None:
    corpus = LocalStorage(tmp_path)
    unit = unit_of(corpus, "a", [line(number, seconds=2 + number % 10) for number in range(40)])
    selection = select("anna", [unit], corpus, POLICY)
    prompts = [row for row in selection.rows if row.prompt]
    assert prompts
    assert all(row.split == "train" and 3 <= row.num_samples / RATE_HZ <= 10 for row in prompts)


def test_enough_is_four_utterances_and_ten_seconds(tmp_path: Path) -> None:
    corpus = LocalStorage(tmp_path)
    four = unit_of(corpus, "a", [line(number, seconds=3) for number in range(4)])
    three = unit_of(corpus, "b", [line(number + 50, seconds=9) for number in range(3)])
    short = unit_of(corpus, "c", [line(number + 70, seconds=2) for number in range(4)])
    assert select("anna", [four], corpus, POLICY).enough(POLICY)
    assert not select("anna", [three], corpus, POLICY).enough(POLICY)
    assert not select("anna", [short], corpus, POLICY).enough(POLICY)
    assert not select("anna", [], corpus, POLICY).enough(POLICY)


def test_a_policy_says_what_is_wrong_with_it() -> None:
    with pytest.raises(ValueError, match="held_out_share"):
        SelectionPolicy(held_out_share=0.9)
