"""Somebody's recording to the same words, pace and pauses in a voice: tokens of the source through the voice's decoder.

Long recordings go through in windows that are cut where it is quiet and overlap; frames of all windows lie on one grid,
and what is drawn for a frame does not depend on its window, so that nothing is heard of a cut. Without the source's
text the decoder reads a single pause for it. Shapes: T samples, S tokens, P phonemes, Z latent channels.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gsv_core.features import RATE_HZ, encoder_wave, tokens_of
from gsv_core.networks.semantic_to_wave import FRAMES_PER_TOKEN, SemanticToWave
from gsv_core.synthesis.reference import sound_seconds
from gsv_core.synthesis.sampling import TOKENS_PER_SECOND
from gsv_core.synthesis.synthesiser import Prompt, Speech, Synthesiser
from gsv_core.text.front_end import phonemise
from gsv_core.text.symbols import ids_of
from gsv_core.training.draws import generator_of

SAMPLES_PER_TOKEN = RATE_HZ // TOKENS_PER_SECOND

_GRID = 4
"""Tokens: cuts and overlaps are multiples of it, so that a window of v3 has whole mel frames (3.75 per token)."""
_FADE_S = 0.01
_SHORTEST_S = 0.5
_LEAST_SOUND_S = 0.2
_PAUSE = "."


@dataclass(frozen=True, kw_only=True)
class Windows:
    """How a long recording is cut, in tokens (25 per second)."""

    most_tokens: int = 600
    """24 s; half of it at least."""
    context_tokens: int = 48
    """Heard on either side of a window and left out again; more than the decoder's flow reaches."""

    def __post_init__(self) -> None:
        if (
            self.most_tokens % (2 * _GRID)
            or self.context_tokens % _GRID
            or min(self.most_tokens, self.context_tokens) < 1
        ):
            raise ValueError(f"windows: expected positive multiples of {2 * _GRID} and {_GRID} tokens, got {self}")


@dataclass(frozen=True, kw_only=True)
class Window:
    """Tokens `start` to `end`, and from `first` to `last` with the context."""

    start: int
    end: int
    first: int
    last: int


WINDOWS = Windows()


@torch.no_grad()
def convert(
    synthesiser: Synthesiser,
    wave: np.ndarray,
    prompt: Prompt,
    *,
    timbre: Tensor | None = None,
    text: str | None = None,
    language: str | None = None,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    rate_hz: int | None = None,
    layout: Windows = WINDOWS,
) -> Speech:
    """What is said in `wave` (T,) at 32 kHz, in the timbre of `prompt` or in `timbre` (G,).

    `text` in `language` is what the source says, where that is known. `steps` and `guidance` are of v3 and v4, which
    also take their sound from what the Prompt says last, and so need a Prompt with its text.

    Raises:
        ValueError: the source is silent or too short, a text without language, or what `Synthesiser.stream` refuses.
    """
    if len(wave) < _SHORTEST_S * RATE_HZ or sound_seconds(wave, RATE_HZ) < _LEAST_SOUND_S:
        raise ValueError(
            f"a source should last {_SHORTEST_S:g} s or more and not be silent, got {len(wave) / RATE_HZ:.1f} s with "
            f"{sound_seconds(wave, RATE_HZ):.1f} s of sound"
        )
    if text and not language:
        raise ValueError("a source's text needs its language: zh, en, ja, ko or yue")
    if len(prompt.phoneme_ids) == 0 and not isinstance(synthesiser.acoustic, SemanticToWave):
        raise ValueError(f"{synthesiser.base.release} converts only with a Prompt whose text is known")
    flow = synthesiser.flow_of(steps, guidance)
    symbols = synthesiser.base.spec.symbols
    ids = phonemise(text, language, release=symbols).ids if text and language else ids_of((_PAUSE,), symbols)
    tokens = source_tokens(synthesiser, wave, layout)
    manner = synthesiser.manner_of(prompt, timbre)
    phonemes = torch.tensor(ids, device=synthesiser.device)
    noise = _noise(synthesiser, len(tokens), seed)
    parts = []
    cuts = list(windows_of(wave, len(tokens), layout))
    for number, window in enumerate(cuts):
        heard = tokens[window.first : window.last].to(synthesiser.device)
        if noise is None:
            generator = generator_of(seed, number, "latent")
            spoken = synthesiser.decode(heard, phonemes, manner, 1.0, flow, generator)
        else:
            frames = slice(FRAMES_PER_TOKEN * window.first, FRAMES_PER_TOKEN * window.last)
            acoustic = synthesiser.acoustic
            assert isinstance(acoustic, SemanticToWave)
            decoded = acoustic.decode(heard[None], phonemes[None], timbre=manner.timbre, noise=noise[..., frames])
            spoken = decoded[0, 0].float().cpu().numpy()
        parts.append((window, spoken))
    out_hz = rate_hz or synthesiser.rate_hz
    joined = _joined(parts, len(tokens), synthesiser.rate_hz)
    return Speech(synthesiser.finished(joined, out_hz), out_hz, (tuple(tokens.tolist()),))


@torch.no_grad()
def source_tokens(synthesiser: Synthesiser, wave: np.ndarray, layout: Windows = WINDOWS) -> Tensor:
    """(T,) at 32 kHz -> (S,) int64, S = T / 1,280 rounded up, through the base's content encoder in windows."""
    base = synthesiser.base
    count = -(-len(wave) // SAMPLES_PER_TOKEN)
    # The encoder's last frame needs samples beyond it; digital silence there would be heard as something else.
    padded = np.pad(wave.astype(np.float32), (0, (count + 2) * SAMPLES_PER_TOKEN - len(wave)), mode="reflect")
    found = []
    for window in windows_of(wave, count, layout):
        part = padded[window.first * SAMPLES_PER_TOKEN : (window.last + 1) * SAMPLES_PER_TOKEN]
        content = base.content_encoder.encode(encoder_wave(part)).to(torch.float16)
        tokens = tokens_of(base, content)
        found.append(tokens[window.start - window.first : window.end - window.first])
    joined = torch.cat(found)
    assert len(joined) == count, f"{len(joined)} tokens for {count} token lengths"
    return joined


def windows_of(wave: np.ndarray, count: int, layout: Windows) -> Iterator[Window]:
    """The windows over `count` tokens of (T,): each ends at the quietest place of its second half."""
    start = 0
    while start < count:
        end = count
        if count - start > layout.most_tokens:
            places = range(start + layout.most_tokens // 2, start + layout.most_tokens + 1, _GRID)
            end = min(places, key=lambda place: _energy_around(wave, place))
        first, last = max(0, start - layout.context_tokens), min(count, end + layout.context_tokens)
        yield Window(start=start, end=end, first=first, last=last)
        start = end


def _energy_around(wave: np.ndarray, place: int) -> float:
    middle = place * SAMPLES_PER_TOKEN
    return float((wave[max(0, middle - SAMPLES_PER_TOKEN) : middle + SAMPLES_PER_TOKEN].astype(np.float64) ** 2).sum())


def _noise(synthesiser: Synthesiser, tokens: int, seed: int) -> Tensor | None:
    """(1, Z, 2 S) for the whole source; None where the decoder draws mel spectrograms, window by window."""
    if not isinstance(synthesiser.acoustic, SemanticToWave):
        return None
    shape = (1, synthesiser.acoustic.config.latent, FRAMES_PER_TOKEN * tokens)
    return torch.randn(shape, generator=generator_of(seed, "conversion")).to(synthesiser.device)


def _joined(parts: list[tuple[Window, np.ndarray]], tokens: int, rate_hz: int) -> np.ndarray:
    """The windows' waves as one, faded into each other over a hundredth of a second around each cut."""
    per_token = rate_hz // TOKENS_PER_SECOND
    whole = np.zeros(tokens * per_token, dtype=np.float32)
    fade = round(_FADE_S * rate_hz)
    rise = ((np.arange(fade) + 0.5) / fade).astype(np.float32)
    for window, wave in parts:
        # From half a fade before the cut; the end of a source has no more than is there.
        begin = window.start * per_token - (fade // 2 if window.start else 0)
        end = min(window.end * per_token + (fade - fade // 2 if window.end < tokens else 0), len(whole))
        piece = wave[begin - window.first * per_token :][: end - begin].copy()
        if window.start:
            piece[:fade] *= rise
            whole[begin : begin + fade] *= 1 - rise
            whole[begin : begin + fade] += piece[:fade]
            whole[begin + fade : begin + len(piece)] = piece[fade:]
        else:
            whole[begin : begin + len(piece)] = piece
    return whole
