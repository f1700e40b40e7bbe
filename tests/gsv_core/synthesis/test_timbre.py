import pytest
import torch

from gsv_core.checkpoints.weights import save_weights
from gsv_core.synthesis.timbre import load_timbre, save_timbre


def test_a_timbre_is_stored_with_what_it_was_made_of(tmp_path):
    timbre = torch.randn(16, dtype=torch.float64)
    path = save_timbre(tmp_path, timbre, {"wave": "wave-s000030"})
    assert path.name == "timbre.safetensors"
    again, metadata = load_timbre(tmp_path)
    assert torch.equal(again, timbre.float())
    assert metadata["wave"] == "wave-s000030"


def test_a_folder_without_one_has_none_and_a_damaged_one_is_named(tmp_path):
    assert load_timbre(tmp_path) is None
    path = tmp_path / "timbre.safetensors"
    for tensors in ({"other": torch.zeros(3)}, {"timbre": torch.zeros(3, 1)}, {"timbre": torch.full((3,), torch.nan)}):
        save_weights(path, tensors, {})
        with pytest.raises(ValueError, match="holds no timbre"):
            load_timbre(tmp_path)
    path.write_bytes(b"no safetensors")
    with pytest.raises(ValueError, match="cannot be read as weights"):
        load_timbre(tmp_path)
