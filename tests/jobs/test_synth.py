"""Speech through the registry, and what is said when there is none."""

from pathlib import Path

import pytest

from gsv_core.audio.wav import read_wav
from jobs.register import register_voice
from jobs.synth import speak
from jobs.tracking import Tracker
from tests.jobs.run_fixture import write_nano_run


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    workspace = tmp_path_factory.mktemp("workspace")
    tracker = Tracker(f"sqlite:///{workspace}/mlflow.db", "corpus")
    for number, scale in ((1, 1.01), (2, 1.05)):
        register_voice(tracker, write_nano_run(workspace / "corpus", run_id=str(number) * 20, scale=scale))
    return tracker.store.uri


def test_the_newest_version_speaks_unless_another_is_named(uri: str) -> None:
    spoken = speak(uri, "alice", "Good morning.", "en", seed=1)
    newest, rate_hz = spoken.wav, spoken.rate_hz
    assert (spoken.release, spoken.note is not None) == ("nano", True)
    samples, read_rate_hz = read_wav(newest)
    assert rate_hz == read_rate_hz == 32_000
    assert len(samples) > rate_hz // 5
    assert abs(samples).max() > 0
    assert speak(uri, "alice", "Good morning.", "en", seed=1, version=2).wav == newest
    assert speak(uri, "alice", "Good morning.", "en", seed=1, alias="challenger").wav == newest
    assert speak(uri, "alice", "Good morning.", "en", seed=1, version=1).wav != newest


def test_what_is_not_there_is_said_with_what_is(uri: str) -> None:
    with pytest.raises(ValueError, match=r"no voice 'bob' .*registered: alice$"):
        speak(uri, "bob", "Hello.", "en")
    with pytest.raises(ValueError, match=r'no voice "o\'hara" .*registered: alice$'):
        speak(uri, "o'hara", "Hello.", "en")
    with pytest.raises(ValueError, match=r"no version 9; it has: 1, 2$"):
        speak(uri, "alice", "Hello.", "en", version=9)
    with pytest.raises(ValueError, match=r"no alias 'champion'; it has: challenger, challenger-nano$"):
        speak(uri, "alice", "Hello.", "en", alias="champion")
    with pytest.raises(ValueError, match="not both"):
        speak(uri, "alice", "Hello.", "en", alias="champion", version=1)


def test_text_that_cannot_be_spoken_is_refused(uri: str) -> None:
    with pytest.raises(ValueError, match="can be spoken"):
        speak(uri, "alice", "…", "en")


def test_steps_and_guidance_are_refused_where_the_release_has_none(uri: str) -> None:
    for options in ({"steps": 4}, {"guidance": 1.0}):
        with pytest.raises(ValueError, match="belong to v3 and v4; nano speaks without them"):
            speak(uri, "alice", "Hello.", "en", **options)


def test_without_a_store_nothing_is_made(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gsv onboard"):
        speak(f"sqlite:///{tmp_path}/mlflow.db", "alice", "Hello.", "en")
    assert list(tmp_path.iterdir()) == []


def test_words_are_said_as_a_lexicon_says_and_a_wrong_one_is_named(uri: str, tmp_path: Path) -> None:
    words = tmp_path / "words.tsv"
    words.write_text("morning\tM AO1 N\n", encoding="utf-8")
    plain = speak(uri, "alice", "Good morning.", "en", seed=1).wav
    assert speak(uri, "alice", "Good morning.", "en", seed=1, lexicon=words).wav != plain
    assert speak(uri, "alice", "Good evening.", "en", seed=1, lexicon=words).wav == (
        speak(uri, "alice", "Good evening.", "en", seed=1).wav
    )
    words.write_text("morning\tmoan\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"words.tsv, line 1: 'MOAN' is no ARPAbet"):
        speak(uri, "alice", "Good morning.", "en", lexicon=words)
