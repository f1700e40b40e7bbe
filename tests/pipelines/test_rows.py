import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.rows import (
    UTTERANCE_SCHEMA,
    Account,
    Clip,
    Recording,
    Utterance,
    Word,
    clip_id,
    table_of,
    utterance_of,
    voice_name,
)


def recording(**changes: object) -> Recording:
    values = {
        "recording_id": "r",
        "voice": "anna",
        "uri": "a.wav",
        "digest": "d" * 64,
        "duration_samples": 100,
        "rate_hz": 44_100,
        "channels": 2,
        "codec": "pcm_s16le",
    }
    return Recording(**{**values, **changes})


def test_a_clip_id_follows_from_its_content() -> None:
    first = Clip.of(recording(), start_sample=10, num_samples=20)
    again = Clip.of(recording(uri="renamed.wav"), start_sample=10, num_samples=20)
    assert first.clip_id == again.clip_id
    assert re.fullmatch("[0-9a-f]{20}", first.clip_id)
    others = [
        Clip.of(recording(voice="ben"), start_sample=10, num_samples=20),
        Clip.of(recording(digest="e" * 64), start_sample=10, num_samples=20),
        Clip.of(recording(), start_sample=11, num_samples=20),
        Clip.of(recording(), start_sample=10, num_samples=21),
    ]
    assert len({clip.clip_id for clip in [first, *others]}) == 5


def test_a_clip_id_is_sha256_of_what_the_design_says() -> None:
    # Computed by hand with `printf 'v\nd\n1\n2' | sha256sum`: other programs rely on it.
    assert clip_id("v", "d", 1, 2) == "ad28ce6668ae6f8ba05f"


@given(st.text(max_size=80))
def test_a_voice_name_is_always_a_safe_path_segment(raw: str) -> None:
    name = voice_name(raw)
    assert name
    assert re.fullmatch(r"[\w-]+", name)
    assert len(name.encode()) < 250
    assert voice_name(name) == name or len(name) > 48


@given(st.text(max_size=30), st.text(max_size=30))
def test_voices_with_other_names_stay_apart(one: str, other: str) -> None:
    import unicodedata

    if unicodedata.normalize("NFC", one) != unicodedata.normalize("NFC", other):
        assert voice_name(one) != voice_name(other)


def test_good_names_stay_as_they_are() -> None:
    assert voice_name("anna-2_b") == "anna-2_b"
    assert voice_name("安娜") == "安娜"
    assert voice_name("../etc").startswith("etc_")


def test_an_account_must_balance() -> None:
    values = {"recording_id": "r", "voice": "v", "uri": "u", "digest": "d", "duration_samples": 10}
    Account(**values, kept_samples=5, rejected_samples=3, non_speech_samples=2)
    with pytest.raises(AssertionError, match="10 samples came in"):
        Account(**values, kept_samples=5, rejected_samples=3, non_speech_samples=1)
    with pytest.raises(AssertionError):
        Account(**values, kept_samples=12, rejected_samples=-2, non_speech_samples=0)


def test_an_utterance_survives_its_table() -> None:
    utterance = Utterance(
        clip_id="c",
        recording_id="r",
        voice="v",
        start_sample=1,
        num_samples=2,
        text="a b",
        language="en",
        confidence=None,
        words=(Word(text="a", start_sample=0, num_samples=1), Word(text="b", start_sample=1, num_samples=1)),
        phonemes=("AH0", "B"),
        phoneme_ids=(1, 2),
    )
    table = table_of([utterance], UTTERANCE_SCHEMA)
    assert table.schema.metadata[b"schema_version"] == b"1"
    assert utterance_of(table.to_pylist()[0]) == utterance
