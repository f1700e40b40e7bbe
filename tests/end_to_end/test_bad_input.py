"""Inputs that nobody should hand in, through the real pipeline: what can be used is used, the rest is named."""

import json
import shutil
import wave
from pathlib import Path

import pyarrow.parquet as pq

from tests.end_to_end.test_onboard import gsv
from tests.shared import shared_path


def rejected_rows(workspace: Path) -> list[dict]:
    voices = workspace / "corpus" / "voices"
    return [row for path in voices.glob("*/rejected/*.parquet") for row in pq.read_table(path).to_pylist()]


def test_bad_files_do_not_stop_the_others(demo_voices: Path, tmp_path: Path) -> None:
    recordings = tmp_path / "recordings"
    shutil.copytree(demo_voices / "ada", recordings / "ada")
    bad = recordings / "bad"
    bad.mkdir()
    (bad / "empty.wav").write_bytes(b"")
    (bad / "text.mp3").write_text("not music")
    (bad / "dangling.wav").symlink_to("nowhere")
    whole = next((demo_voices / "ada").glob("*.wav")).read_bytes()
    (bad / "truncated $(x) | ‘q’.wav").write_bytes(whole[: len(whole) // 2])
    (recordings / "martian").mkdir()
    with (
        wave.open(str(next((demo_voices / "ada").glob("*.wav")))) as long,
        wave.open(str(recordings / "martian" / "a.wav"), "wb") as short,
    ):
        short.setparams(long.getparams())
        short.writeframes(long.readframes(4 * long.getframerate()))
    (recordings / "martian" / "a.txt").write_text("🛸🛸 ⠏⠗ 🛸")
    (recordings / "nobody").mkdir()
    (recordings / "nobody" / "notes.txt").write_text("no recording here")
    done = gsv("prepare", recordings, "--workspace", tmp_path / "w", "--json", "--language", "en")
    lines = {line["voice"]: line for line in json.loads(done.stdout)["voices"]}
    assert lines["ada"]["seconds_kept"] > 20
    assert lines["nobody"]["seconds_in"] == 0
    assert lines["martian"]["seconds_kept"] == 0
    reasons = {(Path(row["uri"]).name, row["reason"]) for row in rejected_rows(tmp_path / "w")}
    assert {("empty.wav", "empty"), ("text.mp3", "unreadable"), ("dangling.wav", "broken_link")} <= reasons
    assert ("a.wav", "unspeakable") in reasons


def test_everything_in_the_bad_folder_goes_through(tmp_path: Path) -> None:
    recordings = tmp_path / "recordings"
    shutil.copytree(shared_path("recordings/bad"), recordings / "bad", symlinks=True)
    done = gsv("prepare", recordings, "--workspace", tmp_path / "w", "--json", "--language", "en")
    (line,) = json.loads(done.stdout)["voices"]
    assert line["failed_units"] == []
    reasons = {Path(row["uri"]).name: row["reason"] for row in rejected_rows(tmp_path / "w")}
    expected = {
        "empty.wav": "empty",
        "header_only.wav": "unreadable",
        "random_bytes.wav": "unreadable",
        "text_named.mp3": "unreadable",
        "silence_20s.wav": "silent",
        "white_noise_10s.wav": "no_speech",
        "music_only.mp3": "no_speech",
        "blip_0.2s.wav": "too_short",
        "duplicate_of_UPPERCASE.wav": "duplicate",
    }
    assert expected.items() <= reasons.items()
    assert reasons["zip_named.flac"] in ("unreadable", "no_audio")
    accounts = {
        Path(account["uri"]).name: account
        for path in (tmp_path / "w" / "corpus" / "voices").glob("*/units/*.done")
        for account in json.loads(path.read_text())["accounts"]
    }
    assert accounts["silence_20s.wav"]["rejected_samples"] == 20 * 32_000
    assert accounts["white_noise_10s.wav"]["non_speech_samples"] == 10 * 32_000
    kept = {
        Path(row["uri"]).name
        for path in (tmp_path / "w" / "corpus" / "voices").glob("*/manifest/*.parquet")
        for row in pq.read_table(path).to_pylist()
    }
    assert {"UPPERCASE.WAV", "dc_offset.wav", "dead_right_channel.wav"} <= kept
    assert "录音 第1天 (最终) – naïve ‘take’ & 100%.wav" in kept
    assert not {"folder_named.wav", ".hidden.wav"} & (kept | set(reasons))
