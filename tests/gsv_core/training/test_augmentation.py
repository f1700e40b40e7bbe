from dataclasses import replace

import numpy as np
import pytest
import torch

from gsv_core.audio.spectrogram import mel_spectrogram
from gsv_core.checkpoints.releases import RELEASES, Release
from gsv_core.features import extract_features
from gsv_core.training.augmentation import LEVEL_DB, SPEEDS, Augmentation, stretched
from gsv_core.training.batches import frames_of
from gsv_core.training.schedules import PhasePlan
from tests.gsv_core.made_items import made_wave

PLAN = PhasePlan(steps=3, batch_size=2, learning_rate=1e-3, augment=True)


@pytest.fixture
def augmentation(base):
    return Augmentation(base, PLAN, voice="anna", phase="wave")


def test_a_clip_varies_from_step_to_step_and_is_the_same_in_the_same_step(base, augmentation, items):
    heard = [augmentation.varied(items[0], step) for step in range(12)]
    assert len({len(item.wave) for item in heard}) == len(SPEEDS)
    assert len({float(item.wave.abs().max()) for item in heard}) == 12
    again = Augmentation(base, PLAN, voice="anna", phase="wave")
    for step in (11, 3):
        assert torch.equal(again.varied(items[0], step).wave, heard[step].wave)
    other = Augmentation(base, replace(PLAN, seed=1), voice="anna", phase="wave")
    assert any(not torch.equal(other.varied(items[0], step).wave, heard[step].wave) for step in range(3))


def test_a_varied_clip_is_a_true_example(base, augmentation, items):
    """What the encoders hear in the varied wave is what the item says, frame by frame."""
    for step in range(8):
        item = augmentation.varied(items[1], step)
        level = float(item.wave.abs().max() / items[1].wave.abs().max())
        assert 10 ** (-(LEVEL_DB + 0.5) / 20) < level < 10 ** ((LEVEL_DB + 0.5) / 20)
        assert abs(len(item.content) - len(item.wave) / 640) <= 1
        assert abs(len(item.tokens) - len(item.content) / 2) <= 1
        assert frames_of(item, 640) > 0
        loud = item.wave / item.wave.abs().max() * items[1].wave.abs().max()
        features = extract_features(base, loud.numpy(), None, loud=True)
        agree = (torch.from_numpy(features.tokens).long() == item.tokens).float().mean()
        assert agree > 0.9
        assert torch.equal(item.phoneme_ids, items[1].phoneme_ids)
    assert float(augmentation.varied(replace(items[0], wave=items[0].wave * 20), 0).wave.abs().max()) <= max(
        1.0, 20 * float(items[0].wave.abs().max())
    )


@pytest.mark.parametrize("speed", [0.9, 0.94, 1.06, 1.2])
def test_stretching_keeps_pitch_and_loudness(speed):
    time = np.arange(48_000) / 32_000
    wave = (0.3 * np.sin(2 * np.pi * 220 * time) + 0.1 * np.sin(2 * np.pi * 660 * time)).astype(np.float32)
    slower = stretched(wave, speed)
    assert len(slower) == round(len(wave) / speed)
    spectra = [np.abs(np.fft.rfft(part[8_000:24_000])) for part in (wave, slower)]
    assert spectra[0].argmax() == spectra[1].argmax() == 110
    assert np.std(slower[4_000:-4_000]) == pytest.approx(np.std(wave), rel=0.03)


def test_stretched_speech_is_the_same_frames_at_another_pace():
    config = RELEASES[Release.V2].spectrogram
    wave = made_wave(2, 2.0)
    mel = mel_spectrogram(wave[None], config)[0]
    other = mel_spectrogram(torch.from_numpy(stretched(wave.numpy(), 1.06))[None], config)[0]
    places = (torch.arange(other.shape[1]) * 1.06).round().long().clamp(max=mel.shape[1] - 1)
    inside = slice(4, -4)
    assert (other - mel[:, places])[:, inside].abs().mean() < 0.5 * (
        mel[:, 1:] - mel.mean(1, keepdim=True)
    ).abs().mean()


def test_noise_is_where_the_clip_is_and_as_quiet_as_was_drawn(augmentation):
    spectrogram = torch.zeros(2, 1025, 64)
    draw = torch.Generator().manual_seed(0)
    spectrogram[0, :, :50] = torch.rand(1025, 50, generator=draw)
    spectrogram[1] = torch.rand(1025, 64, generator=draw)
    lengths = torch.tensor([50, 64])
    noisy = augmentation.noisy(spectrogram, lengths, ["a", "b"], 0)
    assert not noisy[0, :, 50:].any()
    power = (noisy - spectrogram)[1].square().mean() / spectrogram[1].square().mean()
    assert 10**-4.6 < power < 10**-2.4
    alone = augmentation.noisy(spectrogram[:1, :, :50], lengths[:1], ["a"], 0)
    assert torch.equal(alone[0], noisy[0, :, :50])
    assert not torch.equal(augmentation.noisy(spectrogram, lengths, ["a", "b"], 1), noisy)
