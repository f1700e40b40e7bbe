"""The mean timbre of a voice: of its training clips alone, as each saved candidate hears them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gsv_core.checkpoints.base import BaseModel, load_base
from gsv_core.checkpoints.weights import save_weights
from gsv_core.features import extract_features
from gsv_core.synthesis.synthesiser import Synthesiser
from gsv_core.synthesis.timbre import load_timbre
from jobs.timbre import MOST_CLIPS, choose_timbre, timbre_of, write_timbres
from tests.gsv_core.made_items import made_wave
from tests.jobs.run_fixture import write_nano_run

WAVES = ("wave-s000030", "wave-s000060")


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return load_base("nano")


@pytest.fixture
def run_dir(tmp_path: Path, base: BaseModel) -> Path:
    """A run with two candidates whose reference encoders differ from the base's."""
    folder = write_nano_run(tmp_path)
    assert base.semantic_to_wave is not None
    own = base.semantic_to_wave.state_dict()
    for wave, scale in zip(WAVES, (1.1, 1.2), strict=True):
        tensors = {name: tensor * scale for name, tensor in own.items() if name.startswith("ref_enc.")}
        about = {"base_digest": base.digest, "release": "nano"}
        save_weights(folder / "weights" / f"{wave}.safetensors", tensors, about)
    return folder


def clip(name: str) -> Any:
    """A made Example of that name, as far as its timbre is concerned."""
    wave = made_wave(ord(name[0]), 2.0).numpy()
    vector = torch.from_numpy(extract_features(load_base("nano"), wave, None).speaker_vector.astype("float32"))
    item = SimpleNamespace(speaker_vector=vector)
    return SimpleNamespace(utterance=SimpleNamespace(clip_id=name), wave=wave, training_item=lambda: item)


def test_each_candidate_and_the_base_hear_the_clips_for_themselves(run_dir: Path, base: BaseModel) -> None:
    clips = [clip(name) for name in "cab"]
    write_timbres(run_dir, base, WAVES, clips)
    timbres = [timbre_of(run_dir, wave) for wave in (None, *WAVES)]
    voice = Synthesiser(base, wave_weights=run_dir / "weights" / f"{WAVES[1]}.safetensors")
    mean = torch.stack(
        [voice.timbre_heard(torch.from_numpy(one.wave), one.training_item().speaker_vector) for one in clips]
    ).mean(dim=0)
    torch.testing.assert_close(timbres[2], mean)
    assert not torch.allclose(timbres[0], timbres[2], atol=1e-6)
    stored = (run_dir / "timbres" / WAVES[0] / "timbre.safetensors").read_bytes()
    write_timbres(run_dir, base, WAVES, clips[::-1])
    assert (run_dir / "timbres" / WAVES[0] / "timbre.safetensors").read_bytes() == stored
    write_timbres(run_dir, base, WAVES, clips[:2])  # other clips, another timbre
    assert (run_dir / "timbres" / WAVES[0] / "timbre.safetensors").read_bytes() != stored


def test_the_chosen_one_is_the_voice_s(run_dir: Path, base: BaseModel) -> None:
    write_timbres(run_dir, base, WAVES, [clip("a")])
    choose_timbre(run_dir, WAVES[0])
    found = load_timbre(run_dir)
    assert found is not None
    assert found[1] == {"schema_version": "1", "wave": WAVES[0], "clips": "1", "base_digest": base.digest}
    torch.testing.assert_close(found[0], timbre_of(run_dir, WAVES[0]))


def test_of_very_many_clips_a_part_stands_for_all(run_dir: Path, base: BaseModel) -> None:
    one = clip("a")
    many = [
        SimpleNamespace(
            utterance=SimpleNamespace(clip_id=f"{number:020x}"), wave=one.wave[:6400], training_item=one.training_item
        )
        for number in range(MOST_CLIPS + 50)
    ]
    write_timbres(run_dir, base, (), many)
    found = load_timbre(run_dir / "timbres" / "base")
    assert found is not None
    assert found[1]["clips"] == str(MOST_CLIPS)


def test_damaged_weights_are_named(run_dir: Path, base: BaseModel) -> None:
    (run_dir / "weights" / f"{WAVES[0]}.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read as weights"):
        write_timbres(run_dir, base, WAVES, [clip("a")])
