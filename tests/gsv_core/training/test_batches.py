from dataclasses import replace

import pytest
import torch

from gsv_core.audio.spectrogram import SpectrogramConfig, linear_spectrogram
from gsv_core.training.batches import GRAIN, BatchOrder, collate_semantic, collate_wave, frames_of
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
