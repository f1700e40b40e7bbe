import pytest

from gsv_core.checkpoints.releases import RELEASES, Release
from gsv_core.checkpoints.upstream_settings import (
    second_settings,
    semantic_settings,
    semantic_to_mel_config,
    semantic_to_wave_config,
    text_to_semantic_config,
)

PUBLISHED = [release for release in Release if release is not Release.NANO]


@pytest.mark.parametrize("release", PUBLISHED)
def test_settings_that_we_write_lead_back_to_the_network(release):
    spec = RELEASES[release]
    first = semantic_settings(spec.text_to_semantic, "anna", epochs=15, batch_size=8)
    # From the sizes of another release, so that what is read is what was written.
    assert text_to_semantic_config(first, RELEASES[Release.NANO].text_to_semantic).layers == 24
    second = second_settings(spec, "anna", epochs=8, batch_size=4)
    if spec.semantic_to_wave is not None:
        assert semantic_to_wave_config(second, spec.semantic_to_wave) == spec.semantic_to_wave
        other = RELEASES[Release.V2_PRO].semantic_to_wave
        read = semantic_to_wave_config(second, other)
        assert read.upsample_kernels == spec.semantic_to_wave.upsample_kernels
        assert read.timbre_width == spec.semantic_to_wave.timbre_width
    else:
        assert semantic_to_mel_config(second, spec.semantic_to_mel) == spec.semantic_to_mel
    assert second["train"]["segment_size"] == 20_480
    assert second["data"]["filter_length"] == 2048


@pytest.mark.parametrize(
    "model",
    [None, [], {"n_layers": True}, {"n_layers": 10**9}, {"upsample_rates": "x"}, {"n_heads": 7}, {"n_layers": -1}],
)
def test_settings_that_make_no_network_do_not_count(model):
    published = RELEASES[Release.V2].semantic_to_wave
    assert semantic_to_wave_config({"model": model}, published) == published
