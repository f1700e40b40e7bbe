"""Damaged input, at random: mutated audio of every container and mutated sidecars, from ingest to slice.

Each round runs in a process of its own, under a watchdog: a crash of native code or a hang is one failure with its
seed, not the end of the session. Every file must come out as a Recording whose samples balance, or as a Rejection.
"""

import faulthandler
import io
import multiprocessing
import random
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pipelines.ledger import Ledger
from pipelines.rows import LevelledRecording, Rejection
from pipelines.runner import _Work
from pipelines.sources import gather
from pipelines.stages.ingest import IngestSources
from pipelines.stages.normalise import NormaliseRecordings
from pipelines.stages.slice import SliceRecordings
from pipelines.storage import LocalStorage
from pipelines.units import Unit

# Muxer → (suffix, codec, rate): one seed file of each.
CONTAINERS = {
    "wav": (".wav", "pcm_s16le", 22_050),
    "w64": (".w64", "pcm_s24le", 22_050),
    "aiff": (".aiff", "pcm_s16be", 22_050),
    "au": (".au", "pcm_s16be", 22_050),
    "caf": (".caf", "pcm_s16be", 22_050),
    "flac": (".flac", "flac", 22_050),
    "mp3": (".mp3", "libmp3lame", 22_050),
    "ogg": (".ogg", "flac", 22_050),
    "opus": (".opus", "libopus", 48_000),
    "adts": (".aac", "aac", 22_050),
    "ipod": (".m4a", "aac", 22_050),
    "mp4": (".mp4", "aac", 22_050),
    "mov": (".mov", "pcm_s16le", 22_050),
    "webm": (".webm", "libopus", 48_000),
    "matroska": (".mkv", "flac", 22_050),
    "asf": (".wma", "wmav2", 22_050),
    "avi": (".avi", "pcm_s16le", 22_050),
    "mpegts": (".ts", "aac", 22_050),
    "wv": (".wv", "wavpack", 22_050),
    "tta": (".tta", "tta", 22_050),
}
FILES_A_ROUND = 50
HANG_S = 300


def seed_files(wave_file: Path) -> list[tuple[str, bytes]]:
    """(suffix, bytes) of three seconds of speech in every container that this libav can write."""
    import av

    made = []
    for muxer, (suffix, codec, rate_hz) in CONTAINERS.items():
        buffer = io.BytesIO()
        with av.open(str(wave_file)) as source, av.open(buffer, "w", format=muxer) as target:
            stream = target.add_stream(codec, rate=rate_hz)
            assert isinstance(stream, av.AudioStream)
            stream.codec_context.layout = "mono"
            stream.codec_context.bit_rate = 64_000
            for frame in source.decode(audio=0):
                if frame.time > 3.0:
                    break
                target.mux(stream.encode(frame))  # brought to the stream's rate and format on the way
            target.mux(stream.encode(None))
        made.append((suffix, buffer.getvalue()))
    return made


def mutated(files: list[tuple[str, bytes]], random_of: random.Random) -> tuple[str, bytes]:
    """One of the files, damaged in one to three ways."""
    suffix, data = random_of.choice(files)
    changed = bytearray(data)
    for _ in range(random_of.randint(1, 3)):
        if not changed:
            break
        kind = random_of.choice(("bits", "truncate", "length", "splice", "zero", "repeat", "header"))
        at = random_of.randrange(len(changed))
        if kind == "bits":
            for _ in range(random_of.randint(1, 64)):
                place = random_of.randrange(len(changed))
                changed[place] ^= 1 << random_of.randrange(8)
        elif kind == "header":
            for _ in range(random_of.randint(1, 8)):
                changed[random_of.randrange(min(256, len(changed)))] = random_of.randrange(256)
        elif kind == "truncate":
            del changed[at:]
        elif kind == "length":
            near = random_of.randrange(min(512, len(changed)))
            value = random_of.choice((0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFFE, random_of.getrandbits(32)))
            changed[near : near + 4] = value.to_bytes(4, random_of.choice(("little", "big")))
        elif kind == "splice":
            other = random_of.choice(files)[1]
            start = random_of.randrange(len(other))
            changed[at:] = other[start:]
        elif kind == "zero":
            changed[at : at + random_of.randint(1, 4_096)] = bytes(random_of.randint(1, 4_096))
        else:
            changed[at:at] = changed[at : at + random_of.randint(1, 4_096)]
    return suffix, bytes(changed)


SIDECARS: dict[str, bytes] = {
    "a.txt": "She sells sea shells — ‘on’ the sea shore. 她卖贝壳。\n".encode(),
    "a.lab": b"one two three four five\n",
    "a.srt": b"1\n00:00:00,200 --> 00:00:01,500\nHello there.\n\n2\n00:00:01,600 --> 00:00:02,900\nGood bye.\n",
    "voice.yaml": b"language: en\nlicence: CC0-1.0\nconsent: {by: Ada, when: 2026-01-01, purpose: [test]}\n",
    "lexicon.tsv": "gsv\tG S V\nRay\tɹeɪ\n".encode(),
}


def mutated_sidecar(random_of: random.Random) -> tuple[str, bytes]:
    name, data = random_of.choice(sorted(SIDECARS.items()))
    changed = bytearray(data)
    for _ in range(random_of.randint(1, 6)):
        at = random_of.randrange(len(changed) + 1)
        piece = random_of.choice(
            (
                random_of.randbytes(random_of.randint(1, 8)),
                b"\0",
                b"\xff\xfe",
                b"\xef\xbb\xbf",
                b"\n\n\n",
                b"\t",
                b"- [{" * random_of.randint(1, 400),
                b"&a [*a, *a]",
                b"!!python/object/apply:os.system ['true']",
                b"00:00:59,999 --> 00:00:00,001\n",
                b"99:99:99,999 --> 999:00:00,000\n",
                "\u202e\U0001f6f8".encode(),
                data,
            )
        )
        end = at if random_of.random() < 0.5 else min(len(changed), at + random_of.randint(1, 8))
        changed[at:end] = piece
    return name, bytes(changed)


def through(folder: Path, config_digest: str = "fuzz") -> None:
    """Everything under `folder` from ingest to slice, and the books afterwards."""
    handed_in = gather(folder, LocalStorage(folder.parent / "corpus"), language="en")
    for source in handed_in.sources:
        account_of(Unit.of([source], config_digest))


@cache
def loaded_stages() -> list[tuple[Any, Any]]:
    return [(stage, stage.load()) for stage in (IngestSources(), NormaliseRecordings(), SliceRecordings())]


def account_of(unit: Unit) -> None:
    """Take a unit to slice; every sample of it must be in a clip, in a Rejection, or silence."""
    work = _Work(unit=unit, rows=list(unit.sources), ledger=Ledger())
    for stage, model in loaded_stages():
        work.advance(stage, model, lambda name: None, lambda place: None)
    (source,) = unit.sources
    assert len(work.rows) + len(work.rejections) >= 1, f"{source.uri} is neither kept nor rejected"
    for row in work.rows:
        assert isinstance(row, LevelledRecording)
        total = row.recording.duration_samples
        assert total == len(row.wave)
        position = 0
        for clip in row.clips:
            assert clip.num_samples > 0
            assert position <= clip.start_sample
            position = clip.start_sample + clip.num_samples
        assert position <= total
    for rejection in work.rejections:
        assert isinstance(rejection, Rejection)
        assert re.fullmatch(r"[a-z_]+", rejection.reason)


def _audio_round(seed: int, files: list[tuple[str, bytes]], folder: str) -> None:
    faulthandler.dump_traceback_later(HANG_S, exit=True)
    random_of = random.Random(seed)
    voice = Path(folder) / "r" / "ada"
    voice.mkdir(parents=True)
    for number in range(FILES_A_ROUND):
        suffix, data = mutated(files, random_of)
        (voice / f"{seed}-{number}{suffix}").write_bytes(data)
    through(voice.parent)


def _sidecar_round(seed: int, audio: bytes, folder: str) -> None:
    faulthandler.dump_traceback_later(HANG_S, exit=True)
    random_of = random.Random(seed)
    for number in range(FILES_A_ROUND):
        voice = Path(folder) / f"{number}" / "ada"
        voice.mkdir(parents=True)
        (voice / "a.flac").write_bytes(audio)
        name, data = mutated_sidecar(random_of)
        (voice / name).write_bytes(data)
        try:
            through(voice.parent)
        except ValueError as error:
            # A sheet or a lexicon that cannot be understood is refused, in one line that names it.
            if type(error) is not ValueError or name not in str(error):
                raise


def in_a_process_of_its_own(target: Any, *arguments: Any) -> None:
    process = multiprocessing.get_context("spawn").Process(target=target, args=arguments)
    process.start()
    process.join(HANG_S + 60)
    assert process.exitcode == 0, f"exit code {process.exitcode}: a crash, a hang, or a row unaccounted for"


@pytest.fixture(scope="module")
def seeds_of_audio(demo_voices: Path) -> list[tuple[str, bytes]]:
    files = seed_files(demo_voices / "ada" / "day_1.wav")
    assert len(files) == len(CONTAINERS)
    return files


def rounds(total: int) -> list[Any]:
    """Rounds of `FILES_A_ROUND` files that make `total`; the first is quick enough for every test run."""
    return [pytest.param(seed, marks=() if seed == 0 else pytest.mark.slow) for seed in range(total // FILES_A_ROUND)]


@pytest.mark.parametrize("seed", rounds(2_000))
def test_mutated_audio(seed: int, seeds_of_audio: list[tuple[str, bytes]], tmp_path: Path) -> None:
    in_a_process_of_its_own(_audio_round, seed, seeds_of_audio, str(tmp_path))


@pytest.mark.parametrize("seed", rounds(500))
def test_mutated_sidecars(seed: int, seeds_of_audio: list[tuple[str, bytes]], tmp_path: Path) -> None:
    audio = next(data for suffix, data in seeds_of_audio if suffix == ".flac")
    in_a_process_of_its_own(_sidecar_round, seed, audio, str(tmp_path))
