import pytest

from gsv_core.checkpoints.releases import RELEASES, Release, release_of
from gsv_core.text.symbols import inventory


@pytest.mark.parametrize("release", [release for release in Release if RELEASES[release].semantic_to_wave is not None])
def test_the_parts_of_a_release_fit_each_other(release):
    spec = RELEASES[release]
    symbols = len(inventory(spec.symbols))
    assert spec.semantic_to_wave is not None
    assert spec.semantic_to_wave.phoneme_count >= symbols
    assert spec.text_to_semantic.phoneme_count >= symbols
    assert spec.text_to_semantic.token_count == spec.semantic_to_wave.codebook_size + 1
    assert spec.semantic_to_wave.hop == spec.spectrogram.hop
    assert spec.semantic_to_wave.spectrogram_bins == spec.spectrogram.bins
    width = spec.speaker_encoder.width if spec.speaker_encoder else None
    assert spec.semantic_to_wave.speaker_vector_width == width


def test_every_release_but_nano_names_its_files_once():
    for release, spec in RELEASES.items():
        assert spec.release is release
        assert len(set(spec.files)) == len(spec.files)
        assert (spec.files == ()) == (release is Release.NANO)
    assert set(RELEASES) == set(Release)


def test_a_release_is_found_by_its_name_in_any_case():
    assert release_of("V2PROPLUS") is Release.V2_PRO_PLUS
    with pytest.raises(ValueError, match="no release is called 'v9'; there are v1, v2, v2Pro"):
        release_of("v9")
