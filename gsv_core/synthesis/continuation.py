"""A Prompt's mel spectrogram that goes on with what is to be said (v3 and v4), a chunk at a time.

Flow matching continues a mel spectrogram that is known; it was trained on ten seconds at most. So a chunk holds the
end of what was said last and as much of the condition as there is room for, and the next one continues that.
Shapes: M mel bands, D width of the condition, L frames of a prompt, N frames to say.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gsv_core.audio.resample import resample
from gsv_core.audio.spectrogram import SpectrogramConfig, mel_spectrogram
from gsv_core.networks.semantic_to_mel import SemanticToMel, normalise_mel


@dataclass(frozen=True, kw_only=True)
class MelPrompt:
    """What was said last: `mel` (1, M, L), normalised, and the `condition` (1, D, L) it was said under."""

    mel: Tensor
    condition: Tensor


@torch.no_grad()
def mel_prompt(
    network: SemanticToMel,
    wave: Tensor,
    rate_hz: int,
    tokens: Tensor,
    phoneme_ids: Tensor,
    timbre: Tensor,
    spectrogram: SpectrogramConfig,
) -> MelPrompt:
    """The end of a recording: `wave` (T,), its tokens (S,) and its phonemes (P,), which must not be empty."""
    device = timbre.device
    condition = network.condition(tokens[None].to(device), phoneme_ids[None].to(device), timbre)
    heard = torch.from_numpy(resample(wave.cpu().numpy().astype(np.float32), rate_hz, spectrogram.rate_hz))
    mel = normalise_mel(mel_spectrogram(heard[None].to(device), spectrogram))
    frames = min(mel.shape[2], condition.shape[2])  # they begin together, and one ends a little earlier
    first = max(0, frames - network.config.reference_frames)
    return MelPrompt(mel=mel[..., first:frames], condition=condition[..., first:frames])


def no_prompt(network: SemanticToMel, like: Tensor) -> MelPrompt:
    """A prompt of no frame, for a recording of which nobody knows what it says."""
    config = network.config
    return MelPrompt(mel=like.new_empty(1, config.mel_bands, 0), condition=like.new_empty(1, config.condition_width, 0))


@torch.no_grad()
def continue_mel(
    network: SemanticToMel,
    prompt: MelPrompt,
    condition: Tensor,
    *,
    steps: int,
    guidance: float,
    generator: torch.Generator,
) -> Tensor:
    """What comes after `prompt` under `condition` (1, D, N): the mel spectrogram (1, M, N), normalised.

    Every chunk but the first continues as many frames as the prompt has, or where it has none, the most there may be.
    """
    kept = prompt.mel.shape[2] or network.config.reference_frames
    said = []
    for piece in condition.split(network.config.chunk_frames - kept, dim=2):
        known = prompt.mel.shape[2]
        joined = torch.cat([prompt.condition, piece], dim=2)
        lengths = torch.tensor([joined.shape[2]], device=joined.device)
        mel = network.sample(joined, lengths, prompt.mel, steps=steps, guidance=guidance, generator=generator)
        said.append(mel[..., known:])
        prompt = MelPrompt(mel=said[-1][..., -kept:], condition=piece[..., -kept:])
    return torch.cat(said, dim=2)
