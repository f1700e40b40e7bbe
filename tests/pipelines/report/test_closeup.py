from pathlib import Path

import numpy as np
import pytest

from pipelines.engines.audio_writer import encode_audio
from pipelines.report.closeup import Closeup, look_closely
from pipelines.rows import RATE_HZ, REJECTION_SCHEMA, Rejection, table_of
from pipelines.stages.shard import parquet_bytes
from tests.pipelines.report.made_corpus import make_corpus, tone


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("closeup") / "corpus")


@pytest.fixture(scope="module")
def ada(corpus: Path) -> Closeup:
    return look_closely(corpus, "ada")


def test_clips_lie_in_their_recordings_in_order(ada: Closeup) -> None:
    assert ada.recordings == len(ada.timelines) > 0
    for timeline in ada.timelines:
        starts = [span.start_s for span in timeline.spans]
        assert starts == sorted(starts)
        assert all(0 <= span.start_s < span.end_s for span in timeline.spans)


def test_odd_clips_are_far_from_the_median_and_can_be_heard(ada: Closeup) -> None:
    assert ada.odd
    for clip in ada.odd:
        assert clip.value != clip.typical
        assert clip.sample.media_type == "audio/flac"
        assert len(clip.wave) > clip.rate_hz / 2
        assert np.abs(clip.wave).max() > 0.1


def test_a_rejected_clip_is_cut_out_of_its_recording(corpus: Path, tmp_path: Path) -> None:
    wave = np.concatenate([np.zeros(16_000, np.float32), tone(2.0, rate_hz=16_000)])
    recording = encode_audio(tmp_path / "a.wav", wave, 16_000)
    rows = [
        Rejection(
            row_id=str(number),
            voice="linus",
            uri=uri,
            stage="screen",
            reason=reason,
            start_sample=RATE_HZ,
            num_samples=2 * RATE_HZ,
        )
        for number, (uri, reason) in enumerate([(str(recording), "snr_db"), (str(tmp_path / "gone.wav"), "quality")])
    ]
    path = corpus / "voices" / "linus" / "rejected" / f"{'b' * 20}.parquet"
    before = path.read_bytes()
    path.write_bytes(parquet_bytes(table_of(rows, REJECTION_SCHEMA)))
    (heard,) = look_closely(corpus, "linus").rejected
    path.write_bytes(before)
    assert heard.key == "snr_db"
    assert len(heard.wave) == 32_000
    assert np.abs(heard.wave).max() > 0.2


def test_an_unknown_voice_is_named(corpus: Path) -> None:
    with pytest.raises(ValueError, match="nobody"):
        look_closely(corpus, "nobody")
