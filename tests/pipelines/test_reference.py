import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from gsv_core.metrics.speaker import cosine
from pipelines.engines.choose import EngineConfig, load_speaker_verifier
from pipelines.engines.decoder import DecodeLimits
from pipelines.reference import make_reference, read_reference
from pipelines.selection import SelectionBounds
from pipelines.storage import LocalStorage
from pipelines.voice_card import VoiceCard
from tests.shared import shared_path

ENGINES, LIMITS = EngineConfig(), DecodeLimits()
TURNS = {"woman": ((1.0, 9.4), (19.0, 26.0)), "man": ((10.3, 17.9), (27.4, 33.8))}


def card_of(path: Path) -> VoiceCard:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return VoiceCard(voice="anna", display_name="anna", reference=path.name, reference_digest=digest)


@pytest.mark.parametrize("who", TURNS)
def test_the_reference_tells_its_speaker_from_the_other(tmp_path: Path, who: str) -> None:
    session, rate_hz = soundfile.read(shared_path("recordings/bad/two_speakers.wav"), dtype="float32")
    verifier = load_speaker_verifier(ENGINES)
    vectors: dict[str, list[np.ndarray]] = {}
    for speaker, spans in TURNS.items():
        for start, end in spans:
            vectors.setdefault(speaker, []).append(
                verifier.embed(session[round(start * rate_hz) : round(end * rate_hz)], rate_hz)
            )
    path = tmp_path / "only.wav"
    first = TURNS[who][0]
    soundfile.write(path, session[round(first[0] * rate_hz) : round(first[0] * rate_hz) + 4 * rate_hz], rate_hz)
    corpus = LocalStorage(tmp_path / "corpus")
    assert make_reference(card_of(path), path, corpus, ENGINES, LIMITS)
    kept = read_reference(card_of(path), corpus, ENGINES)
    assert kept is not None
    least = SelectionBounds().least_centroid_cosine
    assert least is not None
    for speaker, its in vectors.items():
        assert all((cosine(kept, vector) >= least) == (speaker == who) for vector in its)


def test_it_is_heard_once_and_read_without_its_file(tmp_path: Path, demo_voices: Path) -> None:
    path = shutil.copy(demo_voices / "ada" / "day_1.wav", tmp_path / "a.wav")
    corpus, card = LocalStorage(tmp_path / "corpus"), card_of(tmp_path / "a.wav")
    with pytest.raises(ValueError, match="prepare the corpus again"):
        read_reference(card, corpus, ENGINES)
    assert make_reference(card, path, corpus, ENGINES, LIMITS)
    path.unlink()
    assert not make_reference(card, path, corpus, ENGINES, LIMITS)
    vector = read_reference(card, corpus, ENGINES)
    assert vector is not None
    assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-5)


def test_a_voice_without_one_has_none(tmp_path: Path) -> None:
    assert read_reference(VoiceCard(voice="a", display_name="a"), LocalStorage(tmp_path), ENGINES) is None


@pytest.mark.parametrize("content", [b"RIFF nothing", b""])
def test_one_that_cannot_be_heard_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.wav"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.wav: reference: "):
        make_reference(card_of(path), path, LocalStorage(tmp_path / "corpus"), ENGINES, LIMITS)


def test_silence_is_nobody(tmp_path: Path) -> None:
    path = tmp_path / "silent.wav"
    soundfile.write(path, np.zeros(32_000), 16_000)
    with pytest.raises(ValueError, match="silent"):
        make_reference(card_of(path), path, LocalStorage(tmp_path / "corpus"), ENGINES, LIMITS)
