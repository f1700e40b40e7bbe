from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from gsv_core.audio.spectrogram import mel_spectrogram
from gsv_core.checkpoints.releases import RELEASES, Release
from gsv_core.networks.semantic_to_mel import SemanticToMel, denormalise_mel
from gsv_core.synthesis.continuation import MelPrompt, continue_mel, mel_prompt, no_prompt
from tests.gsv_core.made_bases import small_mel_release
from tests.gsv_core.made_items import made_wave


class Echo:
    """Says its condition, and remembers what it was asked."""

    def __init__(self, reference_frames, chunk_frames):
        self.config = SimpleNamespace(
            reference_frames=reference_frames, chunk_frames=chunk_frames, mel_bands=1, condition_width=1
        )
        self.asked = []

    def sample(self, condition, lengths, prompt, *, steps, guidance, generator):
        self.asked.append((condition[0, 0].tolist(), lengths.tolist(), prompt[0, 0].tolist(), steps, guidance))
        said = condition + 1000
        said[..., : prompt.shape[2]] = 0
        return said


def run(echo, prompt_frames, frames):
    prompt = MelPrompt(mel=torch.full((1, 1, prompt_frames), -1.0), condition=torch.full((1, 1, prompt_frames), -2.0))
    condition = torch.arange(float(frames))[None, None]
    draw = torch.Generator()
    return continue_mel(echo, prompt, condition, steps=4, guidance=0.5, generator=draw)[0, 0].tolist()


def test_each_chunk_continues_the_end_of_the_one_before():
    echo = Echo(reference_frames=4, chunk_frames=10)
    assert run(echo, 4, 14) == [1000.0 + frame for frame in range(14)]
    first, second, third = echo.asked
    assert first == ([-2.0] * 4 + [0, 1, 2, 3, 4, 5], [10], [-1.0] * 4, 4, 0.5)
    assert second[:3] == ([2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [10], [1002, 1003, 1004, 1005])
    assert third[:3] == ([8, 9, 10, 11, 12, 13], [6], [1008, 1009, 1010, 1011])


def test_a_short_prompt_leaves_more_room_and_stays_short():
    echo = Echo(reference_frames=4, chunk_frames=10)
    run(echo, 2, 9)
    assert [asked[1] for asked in echo.asked] == [[10], [3]]
    assert echo.asked[1][2] == [1006, 1007]


def test_without_a_prompt_nothing_is_continued_at_first():
    echo = Echo(reference_frames=4, chunk_frames=10)
    empty = no_prompt(echo, torch.zeros(1))
    assert empty.mel.shape == empty.condition.shape == (1, 1, 0)
    assert run(echo, 0, 9) == [1000.0 + frame for frame in range(9)]
    assert [(asked[1], len(asked[2])) for asked in echo.asked] == [([6], 0), ([7], 4)]


def test_the_published_chunks_are_those_of_the_releases():
    sizes = {}
    for release in (Release.V3, Release.V4):
        config = RELEASES[release].semantic_to_mel
        assert config is not None
        sizes[release] = (config.reference_frames, config.chunk_frames)
    assert sizes == {Release.V3: (468, 934), Release.V4: (500, 1000)}


@pytest.mark.parametrize("release", [Release.V3, Release.V4])
def test_a_prompt_is_the_end_of_the_recording_at_the_rate_of_the_release(release):
    spec = small_mel_release(release)
    torch.manual_seed(0)
    assert spec.semantic_to_mel is not None
    assert spec.mel_spectrogram is not None
    network = SemanticToMel(spec.semantic_to_mel).eval()
    wave, timbre = made_wave(0, 1.0), torch.randn(1, 16, 1)
    tokens, ids = torch.arange(24), torch.tensor([5, 6, 7])
    whole = mel_prompt(
        SimpleNamespace(config=replace(network.config, reference_frames=99), condition=network.condition),
        wave,
        32_000,
        tokens,
        ids,
        timbre,
        spec.mel_spectrogram,
    )
    # Tokens end before the recording does.
    frames = int(24 * network.config.frames_per_token)
    assert whole.mel.shape == (1, 100, frames)
    assert torch.equal(whole.condition, network.condition(tokens[None], ids[None], timbre))
    assert whole.mel.abs().max() < 2
    end = mel_prompt(network, wave, 32_000, tokens, ids, timbre, spec.mel_spectrogram)
    assert torch.equal(end.mel, whole.mel[..., -40:])
    assert torch.equal(end.condition, whole.condition[..., -40:])
    if spec.mel_spectrogram.rate_hz == 32_000:
        expected = mel_spectrogram(wave[None], spec.mel_spectrogram)[..., :frames]
        torch.testing.assert_close(denormalise_mel(whole.mel), expected)
