from dataclasses import replace

import pytest
import torch

from gsv_core.audio.resample import resample
from gsv_core.audio.spectrogram import SpectrogramConfig, linear_spectrogram, mel_spectrogram
from gsv_core.checkpoints.releases import RELEASES, Release
from gsv_core.networks.semantic_to_mel import denormalise_mel, normalise_mel
from gsv_core.training.batches import (
    GRAIN,
    BatchOrder,
    collate_mel,
    collate_semantic,
    collate_wave,
    frames_of,
    whole_frames,
)
from gsv_core.training.schedules import PhasePlan

CONFIG = SpectrogramConfig()


def order_of(count, batch_size, seed=0):
    plan = PhasePlan(steps=1, batch_size=batch_size, learning_rate=1.0, seed=seed)
    return BatchOrder.of([100 + 7 * index for index in range(count)], plan, "anna", "wave")


@pytest.mark.parametrize(("count", "batch_size"), [(10, 8), (7, 3), (3, 8), (16, 4)])
def test_a_pass_holds_every_clip_once_in_even_batches(count, batch_size):
    order = order_of(count, batch_size)
    for number in range(3):
        start = number * order.batches_per_pass
        batches = [order.batch(start + place) for place in range(order.batches_per_pass)]
        assert sorted(index for batch in batches for index in batch) == list(range(count))
        sizes = {len(batch) for batch in batches}
        assert max(sizes) <= batch_size
        assert max(sizes) - min(sizes) <= 1


def test_the_order_follows_from_seed_and_step_and_changes_with_both():
    def passes(seed):
        return [order_of(12, 4, seed).batch(step) for step in range(9)]

    assert passes(0) == passes(0)
    assert passes(0) != passes(1)
    assert passes(0)[:3] != passes(0)[3:6]


def test_batches_hold_clips_of_similar_length():
    order = order_of(40, 4)
    spreads = [max(batch) - min(batch) for batch in (order.batch(step) for step in range(10))]
    assert sum(spreads) / len(spreads) < 15  # of 40 places; 24 where clips are drawn without regard to length


def test_no_clips_is_an_error_that_names_the_voice():
    with pytest.raises(ValueError, match="voice anna has no clip to train wave on"):
        order_of(0, 4)


def test_semantic_rows_are_padded_on_the_right(items):
    vectors = torch.randn(len(items[1].phoneme_ids), 6).half()
    batch = collate_semantic([items[0], replace(items[1], text_vectors=vectors)])
    assert batch.phoneme_ids.shape[1] % GRAIN == 0
    assert batch.phoneme_lengths.tolist() == [10, 11]
    assert torch.equal(batch.phoneme_ids[0, :10], items[0].phoneme_ids)
    assert torch.equal(batch.tokens[1, : len(items[1].tokens)], items[1].tokens)
    assert batch.text_vectors is not None
    assert torch.equal(batch.text_vectors[0], torch.zeros_like(batch.text_vectors[0]))
    assert torch.equal(batch.text_vectors[1, :11], vectors.float())
    assert collate_semantic(items[:2]).text_vectors is None


def test_wave_rows_stay_in_step_and_a_clip_does_not_see_its_neighbours(items):
    batch = collate_wave(items[:3], CONFIG)
    for row, item in enumerate(items[:3]):
        frames = frames_of(item, CONFIG.hop)
        assert frames % 2 == 0
        assert int(batch.lengths[row]) == frames
        assert torch.equal(batch.content[row, :, :frames], item.content[:frames].float().T)
        assert torch.equal(batch.wave[row, 0, : frames * CONFIG.hop], item.wave[: frames * CONFIG.hop])
        alone = linear_spectrogram(item.wave[None, : frames * CONFIG.hop], CONFIG)[0]
        assert torch.equal(batch.spectrogram[row, :, :frames], alone)
        assert not batch.spectrogram[row, :, frames:].any()
    assert batch.wave.shape[-1] == batch.content.shape[-1] * CONFIG.hop


def test_a_window_cuts_content_and_wave_at_the_same_place(items):
    batch = collate_wave(items[:1], CONFIG, starts=[10], longest=20)
    assert batch.lengths.tolist() == [20]
    assert torch.equal(batch.content[0, :, :20], items[0].content[10:30].float().T)
    assert torch.equal(batch.wave[0, 0, : 20 * 640], items[0].wave[10 * 640 : 30 * 640])


def test_a_clip_without_speaker_vector_among_others_is_named(items):
    with pytest.raises(ValueError, match="clip01 has no speaker vector"):
        collate_wave([items[0], replace(items[1], speaker_vector=None)], CONFIG)


def test_an_empty_array_is_refused(items):
    with pytest.raises(ValueError, match="clip00: tokens is empty"):
        replace(items[0], tokens=torch.empty(0))


@pytest.mark.parametrize(("release", "stretch", "grain"), [(Release.V3, 1.875, 8), (Release.V4, 2.0, 2)])
def test_mel_rows_begin_and_end_with_their_frames(items, release, stretch, grain):
    mel_config = RELEASES[release].mel_spectrogram
    assert mel_config is not None
    assert whole_frames(stretch) == grain
    batch = collate_mel([items[0], items[3]], CONFIG, mel_config, stretch=stretch, starts=[0, 16], longest=56)
    assert batch.lengths.tolist() == [56, 56]
    assert batch.content.shape[2] == batch.spectrogram.shape[2] == 64
    assert batch.mel.shape == (2, 100, 64 * stretch)
    assert batch.mel_lengths.tolist() == [int(56 * stretch)] * 2
    assert batch.mel[0, :, int(56 * stretch) :].abs().max() == 0
    assert torch.equal(batch.content[1, :, :56], items[3].content[16:72].float().T)
    # The inside of a window is what the whole clip has there; its ends are mirrored.
    heard = torch.from_numpy(resample(items[3].wave.numpy(), CONFIG.rate_hz, mel_config.rate_hz))
    whole = normalise_mel(mel_spectrogram(heard[None], mel_config))[0]
    first, inside = int(16 * stretch), slice(int(8 * stretch), int(48 * stretch))
    torch.testing.assert_close(batch.mel[1, :, inside], whole[:, first:][:, inside], atol=1e-2, rtol=0)


def test_at_the_waves_own_rate_a_mel_row_is_the_clips_mel_spectrogram(items):
    mel_config = RELEASES[Release.V4].mel_spectrogram
    assert mel_config is not None
    batch = collate_mel(items[:1], CONFIG, mel_config, stretch=2.0)
    frames = frames_of(items[0], CONFIG.hop)
    assert batch.mel_lengths.tolist() == [2 * frames]
    expected = mel_spectrogram(items[0].wave[None, : frames * CONFIG.hop], mel_config)[0]
    torch.testing.assert_close(denormalise_mel(batch.mel[0, :, : 2 * frames]), expected, atol=1e-4, rtol=1e-4)


def test_parts_hold_every_clip_once_within_the_bound():
    order = BatchOrder((100, 30, 90, 20, 60, 10), 6, 0, "anna", "wave")
    chosen = [5, 0, 3, 1, 4, 2]
    assert order.parts(chosen, accumulate=1, most_frames=0) == [[0, 2, 4, 1, 3, 5]]
    assert order.parts(chosen, accumulate=2, most_frames=0) == [[0, 2, 4], [1, 3, 5]]
    assert order.parts(chosen, accumulate=9, most_frames=0) == [[index] for index in (0, 2, 4, 1, 3, 5)]
    bounded = order.parts(chosen, accumulate=1, most_frames=130)
    assert bounded == [[0], [2], [4, 1], [3, 5]]  # the longest, padded to 112, alone
    assert order.parts([], accumulate=2, most_frames=5) == []
