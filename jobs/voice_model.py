"""A registered voice as MLflow's Python model: text and language in, WAV bytes and their rate out.

MLflow stores this very file, with the gsv_core beside it, in every version, so it imports nothing else of ours. The
voice's own files are one folder: `voice.json`, the weights of both networks, the Prompt, and where the voice has them
its mean timbre, further Prompts by style (`prompts/<style>/`) and its `lexicon.tsv`. The base they belong to is found
by release and compared by digest: inside the version (`base/`), in the folder the model configuration calls `models`,
or in that of the environment's GSV_MODELS; `nano` needs none. The configuration's `device`, or GSV_DEVICE,
says where it computes. Axes: T samples, G timbre.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.models import ModelSignature, set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from mlflow.types import ColSpec, Schema
from torch import Tensor

from gsv_core.audio.wav import read_wav, wav_bytes
from gsv_core.checkpoints.base import BaseModel, load_base
from gsv_core.networks.semantic_to_wave import SemanticToWave
from gsv_core.synthesis.reference import check_reference, prompt_of_reference
from gsv_core.synthesis.sampling import Sampling
from gsv_core.synthesis.synthesiser import PAUSE_S, Prompt, Speech, Synthesiser
from gsv_core.synthesis.timbre import load_timbre
from gsv_core.text.lexicon import FILE_NAME as LEXICON_NAME
from gsv_core.text.lexicon import Lexicon
from gsv_core.text.mandarin_polyphones import FOLDER_NAME, Polyphones, load_polyphones

SCHEMA_VERSION = 1
STYLES_FOLDER = "prompts"
DEFAULT_STYLE = "default"
"""The voice's own Prompt, with that Prompt's timbre instead of the mean one."""


@dataclass(frozen=True, kw_only=True)
class Manner:
    """What speech follows: a Prompt, and a timbre (G,) where it is not to be the Prompt's own."""

    prompt: Prompt
    timbre: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Voice:
    """A voice in memory, ready to speak."""

    description: dict[str, Any]
    synthesiser: Synthesiser
    prompt: Prompt
    timbre: Tensor | None = None
    """(G,): the mean over the voice's training clips; None in versions that have none"""
    blended: bool = False
    """Whether its Prompt is another voice's, and its own timbre the only one it has"""
    styles: Mapping[str, Prompt] = field(default_factory=dict)
    lexicon: Lexicon = field(default_factory=Lexicon)

    def manner(self, *, style: str | None = None, references: Sequence[Prompt] = ()) -> Manner:
        """Where somebody says how: that style, or recordings, of which the first is followed and all give the timbre.

        Else the voice's own Prompt in its mean timbre.

        Raises:
            ValueError: both, no such style (those there are are named), or several recordings where the release
                follows one.
        """
        if references:
            if style is not None:
                raise ValueError(f"name a style or a reference, not both; got {style!r} and a reference")
            if len(references) == 1:
                return Manner(prompt=references[0])
            if not isinstance(self.synthesiser.acoustic, SemanticToWave):
                raise ValueError(
                    f"{self.synthesiser.base.release} goes on from one recording; give one reference, got "
                    f"{len(references)}"
                )
            return Manner(prompt=references[0], timbre=self.synthesiser.mean_timbre(references))
        if style is None:
            return Manner(prompt=self.prompt, timbre=self.timbre)
        if style == DEFAULT_STYLE:
            return Manner(prompt=self.prompt, timbre=self.timbre if self.blended else None)
        if style not in self.styles:
            known = ", ".join((DEFAULT_STYLE, *sorted(self.styles)))
            raise ValueError(f"voice {self.description['voice']!r} has no style {style!r}; it has: {known}")
        return Manner(prompt=self.styles[style])

    def reference(
        self, samples: np.ndarray, rate_hz: int, text: str | None = None, language: str | None = None
    ) -> Prompt:
        """A recording (T,) as a Prompt for this voice; without its text only its timbre is followed.

        Raises:
            ValueError: it does not last 3 to 10 s, is silent, or its text cannot be spoken.
        """
        check_reference(samples, rate_hz)
        return prompt_of_reference(self.synthesiser.base, samples, rate_hz, text, language)

    def stream(
        self,
        text: str,
        language: str,
        *,
        manner: Manner | None = None,
        speed: float = 1.0,
        seed: int = 0,
        cut: str = "cut5",
        pause_s: float = PAUSE_S,
        sampling: Sampling | None = None,
        lexicon: Lexicon | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        rate_hz: int | None = None,
    ) -> Iterator[Speech]:
        """`text` piece by piece, as `Synthesiser.stream` gives it; words of `lexicon` count before the voice's own.

        Raises:
            ValueError: what `Synthesiser.stream` refuses.
        """
        chosen = manner or self.manner()
        return self.synthesiser.stream(
            text,
            language,
            chosen.prompt,
            timbre=chosen.timbre,
            speed=speed,
            seed=seed,
            cut=cut,
            pause_s=pause_s,
            sampling=sampling,
            lexicon=lexicon.over(self.lexicon) if lexicon else self.lexicon,
            steps=steps,
            guidance=guidance,
            rate_hz=rate_hz,
        )

    def speak(
        self,
        text: str,
        language: str,
        *,
        style: str | None = None,
        reference: bytes | None = None,
        reference_text: str | None = None,
        reference_language: str | None = None,
        speed: float = 1.0,
        seed: int = 0,
        lexicon: Lexicon | None = None,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> tuple[bytes, int]:
        """`text` as the bytes of a 16-bit WAV and their rate in Hz; the same arguments give the same bytes.

        `style` names one of the voice's Prompts. `reference` is another recording, WAV bytes of 3 to 10 s, that is
        followed instead; where its words are not known, only its timbre ("no-text" mode). Without either the voice's
        Prompt is followed, in its mean timbre. The rest as in `Synthesiser.stream`.

        Raises:
            ValueError: what `Synthesiser.stream`, `manner` and `reference` refuse, or bytes that are no WAV.
        """
        references = []
        if reference is not None:
            references = [self.reference(*read_wav(reference), reference_text, reference_language)]
        pieces = list(
            self.stream(
                text,
                language,
                manner=self.manner(style=style, references=references),
                speed=speed,
                seed=seed,
                lexicon=lexicon,
                steps=steps,
                guidance=guidance,
            )
        )
        rate_hz = pieces[0].rate_hz
        return wav_bytes(np.concatenate([piece.wave for piece in pieces]), rate_hz), rate_hz


class VoiceModel(PythonModel):
    """What `mlflow.pyfunc.load_model` and `mlflow models serve` run; columns as in `signature`."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the voice and its base; MLflow calls this once per process."""
        config = context.model_config or {}
        self._voice = load_voice(
            Path(context.artifacts["voice"]),
            models=config.get("models"),
            device=config.get("device") or os.environ.get("GSV_DEVICE") or "cpu",
        )

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
                ColSpec("string", "style", required=False),
                ColSpec("string", "reference_text", required=False),
                ColSpec("string", "reference_language", required=False),
            ]
        ),
        outputs=Schema([ColSpec("binary", "audio"), ColSpec("long", "rate_hz")]),
    )


def input_example(text: str, language: str) -> dict[str, list[Any]]:
    """A line of input as most people's is: what is said, and how fast; the manner is the voice's own."""
    return {"text": [text], "language": [language], "speed": [1.0], "seed": [0]}


def load_voice(
    folder: Path, *, models: str | Path | None = None, base: BaseModel | None = None, device: str = "cpu"
) -> Voice:
    """The voice in `folder`, on its base: on `base` where it is loaded already.

    Raises:
        ValueError: the base is missing or not the one the voice was trained on, or a file is damaged.
    """
    description = describe_voice(folder)
    if base is None:
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
        device=device,
    )
    words = folder / LEXICON_NAME
    timbre, made_of = load_timbre(folder) or (None, {})
    return Voice(
        description=description,
        synthesiser=synthesiser,
        prompt=Prompt.load(folder),
        timbre=timbre,
        blended="blend" in made_of,
        styles={style: Prompt.load(place) for style, place in _styles_in(folder).items()},
        lexicon=Lexicon.read(words) if words.is_file() else Lexicon(),
    )


def describe_voice(folder: Path) -> dict[str, Any]:
    """What the `voice.json` of a version says.

    Raises:
        ValueError: a newer gsv-fleet wrote it.
    """
    description: dict[str, Any] = json.loads((folder / "voice.json").read_text(encoding="utf-8"))
    if description["schema_version"] > SCHEMA_VERSION:
        raise ValueError(f"{folder} was written by a newer gsv-fleet (schema {description['schema_version']})")
    return description


def prompts_of(folder: Path) -> list[Prompt]:
    """Every Prompt that a version holds, its own first."""
    return [Prompt.load(folder), *(Prompt.load(place) for place in _styles_in(folder).values())]


def _styles_in(folder: Path) -> dict[str, Path]:
    return {path.parent.name: path.parent for path in sorted((folder / STYLES_FOLDER).glob("*/prompt.json"))}


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
    types |= {"steps": int, "guidance": float, "style": str, "reference_text": str, "reference_language": str}
    return {key: types[key](value) for key, value in given.items() if key in types}


set_model(VoiceModel())
