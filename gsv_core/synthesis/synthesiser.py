"""Text and a Prompt to a wave, with a base and the weights of one voice.

Text is cut into pieces; each goes through text → semantic behind the Prompt's phonemes and tokens, then through
semantic → wave in the Prompt's timbre or another, or (v3, v4) through semantic → mel as what the Prompt says next, and
a vocoder. Pieces come out one by one, or joined.
Shapes: P phonemes, S tokens, T samples, F frequency bins, L frames, K speaker vector, W text vector, G timbre.
"""

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from gsv_core.audio.resample import resample
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
from gsv_core.text.front_end import PhonemisedText, UnspeakableText, cut_text, phonemise, with_lead_in
from gsv_core.text.lexicon import Lexicon
from gsv_core.text.mandarin_polyphones import Polyphones
from gsv_core.training.draws import generator_of

_Network = TypeVar("_Network", bound=nn.Module)

PAUSE_S = 0.3
"""Silence between two pieces."""
LONGEST_PAUSE_S = 10.0
SPEEDS = (0.25, 4.0)
RATES_HZ = (8_000, 192_000)
PIECES_AT_ONCE = 16
"""Most that are decoded to tokens together."""
PIECES_AT_FIRST = 4
"""Of a long text, so that a listener need not wait for sixteen; most texts have no more."""

_CEILING = 1 - 2**-15
"""The highest value that 16 bits hold."""


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
    """What was synthesised: `wave` (T,) float32 in [-1, 1]; `tokens` per piece, for those who look inside."""

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
        timbre: Tensor | None = None,
        speed: float = 1.0,
        seed: int = 0,
        cut: str = "cut5",
        pause_s: float = PAUSE_S,
        sampling: Sampling | None = None,
        lexicon: Lexicon | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        rate_hz: int | None = None,
    ) -> Speech:
        """`text` in the manner of `prompt`: what `stream` gives, joined. More there."""
        pieces = list(
            self.stream(
                text,
                language,
                prompt,
                timbre=timbre,
                speed=speed,
                seed=seed,
                cut=cut,
                pause_s=pause_s,
                sampling=sampling,
                lexicon=lexicon,
                steps=steps,
                guidance=guidance,
                rate_hz=rate_hz,
            )
        )
        joined = np.concatenate([piece.wave for piece in pieces])
        return Speech(joined, pieces[0].rate_hz, tuple(tokens for piece in pieces for tokens in piece.tokens))

    def stream(
        self,
        text: str,
        language: str,
        prompt: Prompt,
        *,
        timbre: Tensor | None = None,
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
        """`text` piece by piece, each but the first with the pause before it, as soon as it is spoken.

        The manner is `prompt`'s, and so is the timbre unless `timbre` (G,) is given. `speed` 2 is twice as fast; words
        of `lexicon` are said as it says; `sampling` counts before the synthesiser's own. In v3 and v4, `steps` from
        noise to speech (more: cleaner and slower; None: what the release was published with) and `guidance` (None or 0:
        none; more follows the text closer, at twice the work). The wave is resampled to `rate_hz`, each piece by
        itself, and a piece that would clip is made softer.

        Raises:
            UnspeakableText: nothing in `text` can be spoken.
            ValueError: an unknown language, a speed, pause or rate out of range, an unknown way to `cut`, or steps or
                guidance that are out of range or that the release has not.
        """
        for what, value, (least, most) in (
            ("speed", speed, SPEEDS),
            ("the pause in seconds", pause_s, (0.0, LONGEST_PAUSE_S)),
            ("the rate in Hz", self.rate_hz if rate_hz is None else rate_hz, RATES_HZ),
        ):
            if not least <= value <= most:
                raise ValueError(f"{what} should be between {least:g} and {most:g}, got {value:g}")
        flow = self.flow_of(steps, guidance)
        pieces = self._pieces(text, language, cut, lexicon)
        out_hz = rate_hz or self.rate_hz
        pause = np.zeros(round(pause_s * out_hz), dtype=np.float32)

        def spoken() -> Iterator[Speech]:
            manner = self.manner_of(prompt, timbre)
            for number, (piece, tokens) in enumerate(self._spoken_tokens(pieces, prompt, seed, sampling)):
                ids = torch.tensor(piece.ids, device=self.device)
                wave = self.decode(tokens, ids, manner, speed, flow, generator_of(seed, number, "latent"))
                wave = self.finished(wave, out_hz)
                yield Speech(wave if number == 0 else np.concatenate([pause, wave]), out_hz, (tuple(tokens.tolist()),))

        return spoken()

    def timbre_heard(self, wave: Tensor, speaker_vector: Tensor | None) -> Tensor:
        """(G,): how a recording (T,) at 32 kHz with its speaker vector (K,) sounds to this voice's weights."""
        return self._timbre(wave, speaker_vector)[0, :, 0].cpu()

    def timbre_of(self, prompt: Prompt) -> Tensor:
        """(G,): the same of a Prompt."""
        return self.timbre_heard(prompt.wave, prompt.speaker_vector)

    def mean_timbre(self, prompts: Sequence[Prompt]) -> Tensor:
        """(G,): the mean over several recordings, as v1, v2 and the Pro releases take it."""
        return torch.stack([self.timbre_of(prompt) for prompt in prompts]).mean(dim=0)

    def finished(self, wave: np.ndarray, rate_hz: int) -> np.ndarray:
        """(T,) as a network gave it -> (T',) at `rate_hz` within full scale.

        Raises:
            ValueError: it is not finite.
        """
        if not np.isfinite(wave).all():
            raise ValueError("the weights give no finite wave; they are damaged or their training diverged")
        wave = resample(wave, self.rate_hz, rate_hz)
        peak = float(np.abs(wave).max(initial=0.0))
        return wave * np.float32(_CEILING / peak) if peak > 1 else wave

    @property
    def rate_hz(self) -> int:
        return self.base.spec.output_rate_hz

    def _pieces(self, text: str, language: str, cut: str, lexicon: Lexicon | None) -> list[PhonemisedText]:
        pieces = []
        symbols = self.base.spec.symbols
        for piece in cut_text(text, cut):
            try:
                read = phonemise(piece, language, release=symbols, lexicon=lexicon, polyphones=self.polyphones)
            except UnspeakableText:
                continue  # a piece of punctuation; the whole text is judged below
            pieces.append(with_lead_in(read))
        if not pieces:
            raise UnspeakableText(f"nothing in {text[:80]!r} can be spoken as {language}")
        return pieces

    @torch.no_grad()
    def _timbre(self, wave: Tensor, speaker_vector: Tensor | None) -> Tensor:
        """(1, G, 1) of a recording (T,) at 32 kHz and its speaker vector (K,)."""
        peak = float(wave.abs().max())
        # Published releases were trained on references that reach 1 at most; far louder ones are halved, no more.
        wave = wave / min(2.0, peak) if peak > 1 else wave
        spectrogram = linear_spectrogram(wave[None].to(self.device), self.base.spec.spectrogram)
        if isinstance(self.acoustic, SemanticToMel):
            return self.acoustic.timbre(spectrogram)
        vector = None if speaker_vector is None else speaker_vector.float()[None].to(self.device)
        return self.acoustic.timbre(spectrogram, None, vector)

    def manner_of(self, prompt: Prompt, timbre: Tensor | None = None) -> "Manner":
        """What decoding takes from `prompt`, in its timbre or in another (G,).

        Raises:
            ValueError: the timbre has another width than this release's.
        """
        own = self._timbre(prompt.wave, prompt.speaker_vector)
        if timbre is not None:
            if timbre.shape != own.shape[1:2]:
                raise ValueError(f"a timbre of {self.base.release} is {own.shape[1]} wide, got {tuple(timbre.shape)}")
            own = timbre.to(own)[None, :, None]
        if isinstance(self.acoustic, SemanticToWave):
            return Manner(own)
        if len(prompt.phoneme_ids) == 0:
            return Manner(own, no_prompt(self.acoustic, own))
        mel_config = self.base.spec.mel_spectrogram
        assert mel_config is not None
        said = mel_prompt(self.acoustic, prompt.wave, RATE_HZ, prompt.tokens, prompt.phoneme_ids, own, mel_config)
        return Manner(own, said)

    def _spoken_tokens(
        self, pieces: list[PhonemisedText], prompt: Prompt, seed: int, sampling: Sampling | None
    ) -> Iterator[tuple[PhonemisedText, Tensor]]:
        """Each piece with its tokens (S,), several pieces decoded together."""
        sampling = sampling or self.sampling
        # Tokens whose phonemes are unknown would be taken for those of the piece, so they are left out.
        written = len(prompt.phoneme_ids) > 0
        pace = len(prompt.tokens) / len(prompt.phoneme_ids) if written else None
        for start, end in _groups(len(pieces)):
            bounds = [sampling.most_tokens(len(piece.ids), pace) for piece in pieces[start:end]]
            asked = [
                Sentence(
                    phoneme_ids=torch.cat([prompt.phoneme_ids, torch.tensor(piece.ids)]).to(self.device),
                    text_vectors=self._text_vectors(piece, prompt),
                    prompt_tokens=prompt.tokens.to(self.device) if written else None,
                    clocks=clocks_of(generator_of(seed, number, "tokens")),
                    most_tokens=bound + self.upstream_bound,
                )
                for number, (piece, bound) in enumerate(zip(pieces[start:end], bounds, strict=True), start)
            ]
            spoken = sample_sentences(self.text_to_semantic, asked, sampling)
            for piece, tokens, bound in zip(pieces[start:end], spoken, bounds, strict=True):
                yield piece, tokens[-bound:]

    def _text_vectors(self, piece: PhonemisedText, prompt: Prompt) -> Tensor | None:
        """(P, W) of the Prompt's text and the piece; zeros where one has none, None where both have none."""
        own = _tensor(text_vectors_of(self.base, piece))
        if own is None and prompt.text_vectors is None:
            return None
        width = self.base.text_to_semantic.config.text_vector_width
        parts = [
            vectors.float() if vectors is not None else torch.zeros(length, width)
            for vectors, length in ((prompt.text_vectors, len(prompt.phoneme_ids)), (own, len(piece.ids)))
        ]
        return torch.cat(parts).to(self.device)

    def flow_of(self, steps: int | None, guidance: float | None) -> tuple[int, float]:
        """Steps and guidance of the flow, those of the release where they are not given."""
        if isinstance(self.acoustic, SemanticToWave) and (steps is not None or guidance is not None):
            raise ValueError(f"steps and guidance belong to v3 and v4; {self.base.release} speaks without them")
        return self.base.spec.sampling_steps if steps is None else steps, guidance or 0.0

    @torch.no_grad()
    def decode(
        self,
        tokens: Tensor,
        phoneme_ids: Tensor,
        manner: "Manner",
        speed: float,
        flow: tuple[int, float],
        generator: torch.Generator,
    ) -> np.ndarray:
        """The wave (T,) of one piece's tokens (S,) and phonemes (P,)."""
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
class Manner:
    """What decoding needs of a Prompt: its timbre (1, G, 1), and in v3 and v4 what was said last."""

    timbre: Tensor
    said: MelPrompt | None = None


def _groups(pieces: int) -> Iterator[tuple[int, int]]:
    """First and end of those that are decoded together: few at first, many after."""
    start, size = 0, PIECES_AT_FIRST
    while start < pieces:
        yield start, min(pieces, start + size)
        start, size = start + size, PIECES_AT_ONCE


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
