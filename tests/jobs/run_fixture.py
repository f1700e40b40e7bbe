"""A finished run of one voice as the fleet leaves it on disk, small, with the curves and scores a test names."""

import io
import json
import wave
from pathlib import Path
from typing import Any

import numpy as np

from gsv_core.checkpoints.base import load_base
from gsv_core.checkpoints.weights import save_weights
from gsv_core.synthesis.synthesiser import Prompt

RATE_HZ = 32_000
PAIRS = (("semantic-s000020", "wave-s000030"), ("semantic-s000040", "wave-s000060"))


def write_run(
    corpus: Path,
    *,
    voice: str = "alice",
    run_id: str = "r" * 20,
    base_digest: str = "b" * 64,
    steps: int = 40,
    **changes: Any,
) -> Path:
    """Write the run folder and return it; `changes` go into `run.json`."""
    folder = corpus / "voices" / voice / "runs" / run_id
    folder.mkdir(parents=True)
    run = {
        "schema_version": 1,
        "run_id": run_id,
        "voice": voice,
        "release": "nano",
        "base_digest": base_digest,
        "token_digest": "c" * 64,
        "corpus_digest": "0123456789abcdef" * 4,
        "selection_digest": "e" * 64,
        "seed": 0,
        "trainer_version": "1",
        "recipe": {"semantic": {"steps": steps, "rate": 1e-5}, "wave": {"steps": steps}},
        "seconds_train": 40.0,
        "seconds_held_out": 6.0,
        "utterances_train": 9,
        "utterances_held_out": 2,
    }
    _write(folder / "run.json", run | changes)
    lines = []
    for step in range(1, steps + 1):
        lines.append(
            {"phase": "semantic", "step": step, "kind": "train", "metrics": {"cross_entropy": 7 - 0.01 * step}}
        )
        lines.append({"phase": "wave", "step": step, "kind": "train", "metrics": {"mel": 2.0, "kl": None}})
    lines.append({"phase": "wave", "step": steps, "kind": "held_out", "metrics": {"mel": 1.5}})
    (folder / "curves.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    pairs = []
    for index, (semantic, wave_name) in enumerate(PAIRS):
        audio = f"audio/{semantic}+{wave_name}/clip{index}.wav"
        (folder / audio).parent.mkdir(parents=True)
        (folder / audio).write_bytes(tone_wav(0.5))
        utterance = {"clip_id": f"clip{index}", "text": "good morning", "recognised": None, "audio": audio}
        numbers = {"character_error_rate": 0.9 - 0.1 * index, "likeness": 0.5, "quality": None, "score": 0.1 + index}
        pairs.append({"semantic": semantic, "wave": wave_name, **numbers, "utterances": [utterance]})
    scores = {
        "schema_version": 1,
        "engines": {"recogniser": "pocketsphinx", "speaker_verifier": "resemblyzer", "quality": None},
        "independent": False,
        "speech": "nano: its speech is not speech",
        "pairs": pairs,
        "ceiling": {"character_error_rate": 0.2, "likeness": 0.9},
        "base": {"character_error_rate": 1.0},
        "best": {"semantic": PAIRS[1][0], "wave": PAIRS[1][1], "rule": "highest score"},
    }
    _write(folder / "scores.json", scores)
    _write(
        folder / "cost.json", {"train_seconds": 12.0, "evaluate_seconds": 3.0, "gpu_seconds": 0.0, "steps": 2 * steps}
    )
    _write(folder / "prompt.json", {"clip_id": "p", "text": "Good morning.", "language": "en", "seconds": 3.0})
    (folder / "report.html").write_text("<p>alice</p>", encoding="utf-8")
    _write(folder / "done.json", {"files": {}})
    return folder


def write_nano_run(corpus: Path, *, scale: float = 1.01, **changes: Any) -> Path:
    """`write_run` of a voice that can speak: nano, two tensors of each network scaled, and a tone as its Prompt."""
    base = load_base("nano")
    folder = write_run(corpus, base_digest=base.digest, **changes)
    networks = {"semantic": base.text_to_semantic, "wave": base.semantic_to_wave}
    for half, name in zip(networks, PAIRS[1]):
        own = networks[half].state_dict()
        chosen = [key for key, tensor in own.items() if tensor.is_floating_point()][:2]
        tensors = {key: own[key] * scale for key in chosen}
        save_weights(
            folder / "weights" / f"{name}.safetensors", tensors, {"base_digest": base.digest, "release": "nano"}
        )
    Prompt.of(base, tone(3.0), "Good morning.", "en", clip_id="p").save(folder)
    return folder


def tone(seconds: float) -> np.ndarray:
    """A voiced-like wave (T,): a pulse train at 120 Hz with a slow beat."""
    time = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    harmonics = sum(np.sin(2 * np.pi * 120 * k * time) / k for k in range(1, 20))
    return (0.1 * harmonics * (1.2 + np.sin(2 * np.pi * 3 * time))).astype(np.float32)


def tone_wav(seconds: float) -> bytes:
    """`tone` as the bytes of a 16-bit WAV."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE_HZ)
        file.writeframes((tone(seconds) * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
