"""Clips made of a few tones, for trainers that only need something to learn."""

import torch

from gsv_core.checkpoints.base import BaseModel
from gsv_core.features import extract_features
from gsv_core.training.batches import TrainingItem

RATE_HZ = 32_000


def made_wave(number: int, seconds: float) -> torch.Tensor:
    """A gliding tone with overtones that comes and goes, and a little noise: (T,) float32."""
    draw = torch.Generator().manual_seed(number)
    time = torch.arange(round(seconds * RATE_HZ)) / RATE_HZ
    pitch_hz = 120 + 40 * torch.sin(2 * torch.pi * (0.5 + 0.2 * number) * time)
    phase = 2 * torch.pi * torch.cumsum(pitch_hz / RATE_HZ, dim=0)
    voiced = sum(torch.sin(k * phase) / k for k in range(1, 20))
    loudness = 0.5 + 0.5 * torch.sin(2 * torch.pi * 3 * time)
    return 0.1 * loudness * voiced + 0.003 * torch.randn(len(time), generator=draw)


def made_items(base: BaseModel, count: int = 5, seconds: float = 1.2) -> list[TrainingItem]:
    """`count` clips of growing length with invented phonemes."""
    items = []
    for number in range(count):
        wave = made_wave(number, seconds + 0.2 * number)
        features = extract_features(base, wave.numpy(), None)
        assert features.speaker_vector is not None
        draw = torch.Generator().manual_seed(1000 + number)
        items.append(
            TrainingItem(
                clip_id=f"clip{number:02d}",
                phoneme_ids=torch.randint(1, 700, (10 + number,), generator=draw),
                tokens=torch.from_numpy(features.tokens).long(),
                content=torch.from_numpy(features.content),
                speaker_vector=torch.from_numpy(features.speaker_vector),
                wave=wave,
            )
        )
    return items
