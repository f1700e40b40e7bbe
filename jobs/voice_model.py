"""A registered voice as MLflow's Python model: text and language in, WAV bytes and their rate out.

MLflow stores this very file, with the gsv_core beside it, in every version, so it imports nothing else of ours. The
voice's own files are one folder: `voice.json`, the weights of both networks, the Prompt, and the voice's `lexicon.tsv`
if it had one. The base they belong to is found by release and compared by digest: inside the version (`base/`), in the
folder the model configuration calls `models`, or in that of the environment's GSV_MODELS; `nano` needs none. Axes: T
samples.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from mlflow.models import ModelSignature, set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from mlflow.types import ColSpec, Schema

from gsv_core.audio.resample import resample
from gsv_core.audio.wav import read_wav, wav_bytes
from gsv_core.checkpoints.base import load_base
from gsv_core.features import ENCODER_RATE_HZ, RATE_HZ, speaker_vector_of
from gsv_core.synthesis.synthesiser import Prompt, Synthesiser
from gsv_core.text.lexicon import FILE_NAME as LEXICON_NAME
from gsv_core.text.lexicon import Lexicon
from gsv_core.text.mandarin_polyphones import FOLDER_NAME, Polyphones, load_polyphones

SCHEMA_VERSION = 1
REFERENCE_SECONDS = (3.0, 10.0)
"""What GPT-SoVITS was made to take its manner from; outside of it, it refuses."""


@dataclass(frozen=True, kw_only=True)
class Voice:
    """A voice in memory, ready to speak."""

    description: dict[str, Any]
    synthesiser: Synthesiser
    prompt: Prompt
    lexicon: Lexicon = field(default_factory=Lexicon)

    def speak(
        self,
        text: str,
        language: str,
        *,
        speed: float = 1.0,
        seed: int = 0,
        reference: bytes | None = None,
        lexicon: Lexicon | None = None,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> tuple[bytes, int]:
        """`text` as the bytes of a 16-bit WAV and their rate in Hz; the same arguments give the same bytes.

        `reference` is another recording of the voice, WAV bytes of 3 to 10 s, that gives the timbre instead of the
        stored Prompt; its words are not known, so it continues nothing ("no-text" mode). Words of `lexicon` count
        before the voice's own. `steps` and `guidance` are of v3 and v4, as in `Synthesiser.speak`.

        Raises:
            ValueError: nothing speakable, an unknown language, a speed out of range, an unfit reference, or steps or
                guidance that are out of range or that the release has not.
        """
        prompt = self.prompt if reference is None else self._prompt_of(reference)
        words = lexicon.over(self.lexicon) if lexicon else self.lexicon
        speech = self.synthesiser.speak(
            text, language, prompt, speed=speed, seed=seed, lexicon=words, steps=steps, guidance=guidance
        )
        return wav_bytes(speech.wave, speech.rate_hz), speech.rate_hz

    def _prompt_of(self, reference: bytes) -> Prompt:
        samples, rate_hz = read_wav(reference)
        seconds = len(samples) / rate_hz
        shortest, longest = REFERENCE_SECONDS
        if not shortest <= seconds <= longest:
            raise ValueError(f"a reference should last {shortest:g} to {longest:g} s, got {seconds:.1f} s")
        vector = speaker_vector_of(self.synthesiser.base, torch.from_numpy(resample(samples, rate_hz, ENCODER_RATE_HZ)))
        nothing = torch.empty(0, dtype=torch.int64)
        return Prompt(
            text="",
            language=self.prompt.language,
            phoneme_ids=nothing,
            tokens=nothing,
            wave=torch.from_numpy(resample(samples, rate_hz, RATE_HZ)),
            speaker_vector=None if vector is None else torch.from_numpy(vector),
        )


class VoiceModel(PythonModel):
    """What `mlflow.pyfunc.load_model` and `mlflow models serve` run; columns as in `signature`."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the voice and its base; MLflow calls this once per process."""
        self._voice = load_voice(Path(context.artifacts["voice"]), models=(context.model_config or {}).get("models"))

    def predict(
        self,
        context: PythonModelContext,  # noqa: ARG002 - MLflow's signature
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,  # noqa: ARG002
    ) -> pd.DataFrame:
        """Speak each line of `model_input`, in its order."""
        spoken = [self._voice.speak(**_arguments(row)) for row in model_input.to_dict("records")]
        return pd.DataFrame(spoken, columns=["audio", "rate_hz"])


def signature() -> ModelSignature:
    """The columns of the DataFrames that go in and come out."""
    return ModelSignature(
        inputs=Schema(
            [
                ColSpec("string", "text"),
                ColSpec("string", "language"),
                ColSpec("binary", "reference", required=False),
                ColSpec("double", "speed", required=False),
                ColSpec("long", "seed", required=False),
                ColSpec("long", "steps", required=False),
                ColSpec("double", "guidance", required=False),
            ]
        ),
        outputs=Schema([ColSpec("binary", "audio"), ColSpec("long", "rate_hz")]),
    )


def load_voice(folder: Path, *, models: str | Path | None = None) -> Voice:
    """The voice in `folder`, on its base.

    Raises:
        ValueError: the base is missing or not the one the voice was trained on, or a file is damaged.
    """
    description = json.loads((folder / "voice.json").read_text(encoding="utf-8"))
    if description["schema_version"] > SCHEMA_VERSION:
        raise ValueError(f"{folder} was written by a newer gsv-fleet (schema {description['schema_version']})")
    base = load_base(description["release"], _models_folder(folder, models))
    if base.digest != description["base_digest"]:
        raise ValueError(
            f"voice {description['voice']!r} was trained on base {description['release']} with digest "
            f"{description['base_digest'][:16]}…, but the one found here has {base.digest[:16]}…; "
            "nano needs the same version of torch, others the same files"
        )
    synthesiser = Synthesiser(
        base,
        folder / "semantic.safetensors",
        folder / "wave.safetensors",
        polyphones=_polyphones_of(description, models),
    )
    words = folder / LEXICON_NAME
    return Voice(
        description=description,
        synthesiser=synthesiser,
        prompt=Prompt.load(folder),
        lexicon=Lexicon.read(words) if words.is_file() else Lexicon(),
    )


def _models_folder(folder: Path, models: str | Path | None) -> Path | None:
    """Where the files of a published base are: in the version itself, as configured, or as the environment says."""
    if (folder / "base").is_dir():
        return folder / "base"
    place = models or os.environ.get("GSV_MODELS")
    return Path(place) if place else None


def _polyphones_of(description: dict[str, Any], models: str | Path | None) -> Polyphones | None:
    """The g2pW the voice's corpus was made with, from the models folder; None where it was made without one.

    Raises:
        ValueError: there is none, or it is another.
    """
    expected = description.get("polyphones")
    if expected is None:
        return None
    place = models or os.environ.get("GSV_MODELS")
    if not place:
        raise ValueError(
            f"voice {description['voice']!r} was made with g2pW {expected}: run `gsv models pull text`, and name the "
            "models folder with --set flow.base_folder=DIR or GSV_MODELS"
        )
    return load_polyphones(Path(place) / FOLDER_NAME, expected=expected)


def _arguments(row: dict[str, Any]) -> dict[str, Any]:
    """A line of the input as arguments of `speak`; an optional cell that is empty is left to its default."""
    given = {key: value for key, value in row.items() if value is not None and value == value}  # NaN is not itself
    types: dict[str, type] = {"text": str, "language": str, "reference": bytes, "speed": float, "seed": int}
    types |= {"steps": int, "guidance": float}
    return {key: types[key](value) for key, value in given.items() if key in types}


set_model(VoiceModel())
