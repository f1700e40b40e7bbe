"""Text and a Prompt to a wave, with a base and the weights of one voice.

Text is cut into sentences; each goes through text → semantic behind the Prompt's phonemes and tokens, then through
semantic → wave in the Prompt's timbre, or (v3, v4) through semantic → mel as what the Prompt says next, and a vocoder.
Shapes: P phonemes, S tokens, T samples, F frequency bins, L frames, K speaker vector, W text vector, G timbre.
"""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from gsv_core.audio.spectrogram import linear_spectrogram
from gsv_core.checkpoints.base import BaseModel
from gsv_core.checkpoints.weights import load_weights, save_weights, write_json
from gsv_core.features import RATE_HZ, Features, extract_features, text_vectors_of
from gsv_core.networks.layers import fold_weight_norm
from gsv_core.networks.lora import fold_factors
from gsv_core.networks.semantic_to_mel import SemanticToMel, denormalise_mel
from gsv_core.networks.semantic_to_wave import SemanticToWave
from gsv_core.synthesis.continuation import MelPrompt, continue_mel, mel_prompt, no_prompt
from gsv_core.synthesis.sampling import Sampling, Sentence, clocks_of, sample_sentences
from gsv_core.text.front_end import PhonemisedText, UnspeakableText, cut_text, phonemise
from gsv_core.text.lexicon import Lexicon
from gsv_core.text.mandarin_polyphones import Polyphones
from gsv_core.training.draws import generator_of

_Network = TypeVar("_Network", bound=nn.Module)

PAUSE_S = 0.3
"""Silence between two sentences."""
SENTENCES_AT_ONCE = 16
"""Most that are decoded to tokens together."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """The Utterance that shows synthesis how to sound: what was said, how, and by whom."""

    text: str
    language: str
    phoneme_ids: Tensor
    """(P,) int64; empty where the transcript is unknown: then only the timbre is followed"""
    tokens: Tensor
    """(S,) int64"""
    wave: Tensor
    """(T,) float32 at the release's input rate, 32 kHz"""
    text_vectors: Tensor | None = None
    """(P, W)"""
    speaker_vector: Tensor | None = None
    """(K,)"""
    clip_id: str | None = None

    @classmethod
    def of(
        cls,
        base: BaseModel,
        wave: np.ndarray,
        text: str,
        language: str,
        *,
        clip_id: str | None = None,
        silence_s: float = 0.0,
    ) -> Self:
        """The Prompt made of a recording (T,) at 32 kHz and its transcript.

        `silence_s` of digital silence follows the recording when its tokens are made, and only then: upstream's
        inference has 0.6 s there.

        Raises:
            UnspeakableText: the transcript has no phoneme.
        """
        phonemised = phonemise(text, language, release=base.spec.symbols)
        features = extract_features(base, wave, phonemised)
        if silence_s:
            longer = np.concatenate([wave, np.zeros(round(silence_s * RATE_HZ), dtype=wave.dtype)])
            features = replace(features, tokens=extract_features(base, longer, None).tokens)
        return cls.of_features(features, wave, text, language, phonemised.ids, clip_id=clip_id)

    @classmethod
    def of_features(
        cls,
        features: Features,
        wave: np.ndarray,
        text: str,
        language: str,
        phoneme_ids: tuple[int, ...],
        *,
        clip_id: str | None = None,
    ) -> Self:
        """The Prompt made of stored features."""
        return cls(
            text=text,
            language=language,
            phoneme_ids=torch.tensor(phoneme_ids),
            tokens=torch.from_numpy(features.tokens).long(),
            wave=torch.from_numpy(np.ascontiguousarray(wave, dtype=np.float32)),
            text_vectors=_tensor(features.text_vectors),
            speaker_vector=_tensor(features.speaker_vector),
            clip_id=clip_id,
        )

    def save(self, folder: Path, rate_hz: int = 32_000) -> None:
        """Write `prompt.safetensors` and, for people, `prompt.json` into `folder`."""
        tensors = {"phoneme_ids": self.phoneme_ids, "tokens": self.tokens, "wave": self.wave}
        optional = {"text_vectors": self.text_vectors, "speaker_vector": self.speaker_vector}
        tensors |= {name: tensor for name, tensor in optional.items() if tensor is not None}
        save_weights(folder / "prompt.safetensors", tensors, {"schema_version": "1"})
        record = {
            "schema_version": 1,
            "clip_id": self.clip_id,
            "text": self.text,
            "language": self.language,
            "seconds": round(len(self.wave) / rate_hz, 3),
        }
        write_json(folder / "prompt.json", record)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The Prompt that `save` wrote into `folder`.

        Raises:
            ValueError: a file is missing or is not what `save` writes.
        """
        tensors, _ = load_weights(folder / "prompt.safetensors")
        try:
            record = json.loads((folder / "prompt.json").read_text(encoding="utf-8"))
            return cls(
                text=record["text"],
                language=record["language"],
                clip_id=record["clip_id"],
                phoneme_ids=tensors["phoneme_ids"],
                tokens=tensors["tokens"],
                wave=tensors["wave"],
                text_vectors=tensors.get("text_vectors"),
                speaker_vector=tensors.get("speaker_vector"),
            )
        except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{folder} holds no readable Prompt: {error}") from error


@dataclass(frozen=True)
class Speech:
    """What was synthesised: `wave` (T,) float32 in [-1, 1]; `tokens` per sentence, for those who look inside."""

    wave: np.ndarray
    rate_hz: int
    tokens: tuple[tuple[int, ...], ...] = ()

    @property
    def seconds(self) -> float:
        return len(self.wave) / self.rate_hz


class Synthesiser:
    """A base with one voice's weights in it. Gives the same wave for the same text, Prompt and seed.

    Tensors that the voice does not change are the base's own, not copies: many voices of a base fit beside each other.
    """

    def __init__(
        self,
        base: BaseModel,
        semantic_weights: Path | None = None,
        wave_weights: Path | None = None,
        *,
        sampling: Sampling | None = None,
        device: torch.device | str = "cpu",
        upstream_bound: bool = False,
        polyphones: Polyphones | None = None,
    ) -> None:
        """Either file may be None: that half stays the base's.

        `upstream_bound` ends sentences that do not end by themselves as upstream does: it goes on to one token more
        than the bound and loses the first. `polyphones` read Mandarin as for the voice's corpus.

        Raises:
            ValueError: a file is damaged, belongs to another base, or does not fit the network.
        """
        self.base = base
        self.device = torch.device(device)
        self.sampling = sampling or Sampling()
        self.upstream_bound = upstream_bound
        self.polyphones = polyphones
        self.text_to_semantic = _with_weights(base.text_to_semantic, _weights_of(semantic_weights, base), self.device)
        self.acoustic = _with_weights(base.acoustic, _weights_of(wave_weights, base), self.device)
        self.vocoder = None if base.vocoder is None else _with_weights(base.vocoder, {}, self.device)

    @classmethod
    def from_tensors(
        cls,
        base: BaseModel,
        semantic_weights: Mapping[str, Tensor],
        wave_weights: Mapping[str, Tensor],
        *,
        sampling: Sampling | None = None,
        device: torch.device | str = "cpu",
    ) -> Self:
        """The same from tensors in memory, as a trainer's `weights()` gives them."""
        synthesiser = cls(base, sampling=sampling, device=device)
        synthesiser.text_to_semantic = _with_weights(base.text_to_semantic, semantic_weights, synthesiser.device)
        synthesiser.acoustic = _with_weights(base.acoustic, wave_weights, synthesiser.device)
        return synthesiser

    def speak(
        self,
        text: str,
        language: str,
        prompt: Prompt,
        *,
        speed: float = 1.0,
        seed: int = 0,
        cut: str = "cut5",
        lexicon: Lexicon | None = None,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> Speech:
        """`text` in the manner and timbre of `prompt`; `speed` 2 is twice as fast; words of `lexicon` as it says.

        In v3 and v4, `steps` from noise to speech (more: cleaner and slower; None: what the release was published with)
        and `guidance` (None or 0: none; more follows the text closer, at twice the work).

        Raises:
            UnspeakableText: nothing in `text` can be spoken.
            ValueError: an unknown language, a speed that is not positive, an unknown way to `cut`, or steps or guidance
                that are out of range or that the release has not.
        """
        if not speed > 0:
            raise ValueError(f"speed must be positive, got {speed}")
        flow = self._flow(steps, guidance)
        sentences = self._sentences(text, language, cut, lexicon)
        spoken = self._tokens(sentences, prompt, seed)
        manner = self._manner(prompt)
        pause = np.zeros(round(PAUSE_S * self.rate_hz), dtype=np.float32)
        waves: list[np.ndarray] = []
        for number, (sentence, tokens) in enumerate(zip(sentences, spoken, strict=True)):
            ids = torch.tensor(sentence.ids, device=self.device)
            wave = self._decode(tokens, ids, manner, speed, flow, generator_of(seed, number, "latent"))
            waves += [wave] if number == 0 else [pause, wave]
        joined = np.concatenate(waves)
        if not np.isfinite(joined).all():
            raise ValueError("the weights give no finite wave; they are damaged or their training diverged")
        return Speech(
            joined / max(1.0, float(np.abs(joined).max())), self.rate_hz, tuple(tuple(t.tolist()) for t in spoken)
        )

    @property
    def rate_hz(self) -> int:
        return self.base.spec.output_rate_hz

    def _sentences(self, text: str, language: str, cut: str, lexicon: Lexicon | None) -> list[PhonemisedText]:
        sentences = []
        symbols = self.base.spec.symbols
        for piece in cut_text(text, cut):
            try:
                sentences.append(
                    phonemise(piece, language, release=symbols, lexicon=lexicon, polyphones=self.polyphones)
                )
            except UnspeakableText:
                continue  # a piece of punctuation; the whole text is judged below
        if not sentences:
            raise UnspeakableText(f"nothing in {text[:80]!r} can be spoken as {language}")
        return sentences

    @torch.no_grad()
    def _timbre(self, prompt: Prompt) -> Tensor:
        """(1, G, 1) of the Prompt's wave and speaker vector."""
        peak = float(prompt.wave.abs().max())
        # Published releases were trained on references that reach 1 at most; far louder ones are halved, no more.
        wave = prompt.wave / min(2.0, peak) if peak > 1 else prompt.wave
        spectrogram = linear_spectrogram(wave[None].to(self.device), self.base.spec.spectrogram)
        vector = None if prompt.speaker_vector is None else prompt.speaker_vector.float()[None].to(self.device)
        if isinstance(self.acoustic, SemanticToMel):
            return self.acoustic.timbre(spectrogram)
        return self.acoustic.timbre(spectrogram, None, vector)

    def _manner(self, prompt: Prompt) -> "_Manner":
        timbre = self._timbre(prompt)
        if isinstance(self.acoustic, SemanticToWave):
            return _Manner(timbre)
        if len(prompt.phoneme_ids) == 0:
            return _Manner(timbre, no_prompt(self.acoustic, timbre))
        mel_config = self.base.spec.mel_spectrogram
        assert mel_config is not None
        said = mel_prompt(self.acoustic, prompt.wave, RATE_HZ, prompt.tokens, prompt.phoneme_ids, timbre, mel_config)
        return _Manner(timbre, said)

    def _tokens(self, sentences: list[PhonemisedText], prompt: Prompt, seed: int) -> list[Tensor]:
        """The tokens of each sentence, several sentences decoded together."""
        # Tokens whose phonemes are unknown would be taken for those of the sentence, so they are left out.
        written = len(prompt.phoneme_ids) > 0
        pace = len(prompt.tokens) / len(prompt.phoneme_ids) if written else None
        bounds = [self.sampling.most_tokens(len(sentence.ids), pace) for sentence in sentences]
        asked = [
            Sentence(
                phoneme_ids=torch.cat([prompt.phoneme_ids, torch.tensor(sentence.ids)]).to(self.device),
                text_vectors=self._text_vectors(sentence, prompt),
                prompt_tokens=prompt.tokens.to(self.device) if written else None,
                clocks=clocks_of(generator_of(seed, number, "tokens")),
                most_tokens=bound + self.upstream_bound,
            )
            for number, (sentence, bound) in enumerate(zip(sentences, bounds, strict=True))
        ]
        spoken: list[Tensor] = []
        for start in range(0, len(asked), SENTENCES_AT_ONCE):
            spoken += sample_sentences(self.text_to_semantic, asked[start : start + SENTENCES_AT_ONCE], self.sampling)
        return [tokens[-bound:] for tokens, bound in zip(spoken, bounds, strict=True)]

    def _text_vectors(self, sentence: PhonemisedText, prompt: Prompt) -> Tensor | None:
        """(P, W) of the Prompt's text and the sentence; zeros where one has none, None where both have none."""
        own = _tensor(text_vectors_of(self.base, sentence))
        if own is None and prompt.text_vectors is None:
            return None
        width = self.base.text_to_semantic.config.text_vector_width
        parts = [
            vectors.float() if vectors is not None else torch.zeros(length, width)
            for vectors, length in ((prompt.text_vectors, len(prompt.phoneme_ids)), (own, len(sentence.ids)))
        ]
        return torch.cat(parts).to(self.device)

    def _flow(self, steps: int | None, guidance: float | None) -> tuple[int, float]:
        """Steps and guidance of the flow, those of the release where they are not given."""
        if isinstance(self.acoustic, SemanticToWave) and (steps is not None or guidance is not None):
            raise ValueError(f"steps and guidance belong to v3 and v4; {self.base.release} speaks without them")
        return self.base.spec.sampling_steps if steps is None else steps, guidance or 0.0

    @torch.no_grad()
    def _decode(
        self,
        tokens: Tensor,
        phoneme_ids: Tensor,
        manner: "_Manner",
        speed: float,
        flow: tuple[int, float],
        generator: torch.Generator,
    ) -> np.ndarray:
        """The wave (T,) of one sentence's tokens (S,) and phonemes (P,)."""
        ids, timbre = phoneme_ids[None], manner.timbre
        if isinstance(self.acoustic, SemanticToWave):
            wave = self.acoustic.decode(tokens[None], ids, timbre=timbre, speed=speed, generator=generator)
        else:
            assert manner.said is not None
            assert self.vocoder is not None
            condition = self.acoustic.condition(tokens[None], ids, timbre, speed=speed)
            steps, guidance = flow
            mel = continue_mel(
                self.acoustic, manner.said, condition, steps=steps, guidance=guidance, generator=generator
            )
            wave = self.vocoder(denormalise_mel(mel))
        return wave[0, 0].float().cpu().numpy()


@dataclass(frozen=True)
class _Manner:
    """What decoding needs of a Prompt: its timbre (1, G, 1), and in v3 and v4 what was said last."""

    timbre: Tensor
    said: MelPrompt | None = None


def _tensor(array: np.ndarray | None) -> Tensor | None:
    return None if array is None else torch.from_numpy(array)


def _weights_of(path: Path | None, base: BaseModel) -> dict[str, Tensor]:
    if path is None:
        return {}
    tensors, metadata = load_weights(path)
    if metadata.get("base_digest") != base.digest:
        raise ValueError(
            f"{path} was trained from base {metadata.get('release')} {str(metadata.get('base_digest'))[:12]}, "
            f"not from {base.release} {base.digest[:12]}"
        )
    return tensors


def _with_weights(network: _Network, weights: Mapping[str, Tensor], device: torch.device) -> _Network:
    """`network` for inference with `weights` in place of its own: what they leave is shared with it, not copied."""
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    changed = copy.deepcopy(network, shared)
    own = changed.state_dict()
    weights = fold_factors(weights, own)
    for name, tensor in weights.items():
        if name not in own or own[name].shape != tensor.shape:
            expected = tuple(own[name].shape) if name in own else "no such tensor"
            raise ValueError(f"weights do not fit the base: {name} is {tuple(tensor.shape)}, expected {expected}")
    own |= {name: tensor.to(own[name].dtype) for name, tensor in weights.items()}
    changed.load_state_dict(own, assign=True)
    fold_weight_norm(changed)
    return changed.to(device).eval()
