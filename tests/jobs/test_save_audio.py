"""What a save sounds like, without training noticing."""

import io
import wave
from pathlib import Path

import pytest
import torch

from gsv_core.checkpoints.base import BaseModel, load_base
from gsv_core.checkpoints.weights import save_weights
from gsv_core.synthesis.synthesiser import Prompt
from gsv_core.training.loop import Save
from jobs.save_audio import SaveAudio
from tests.jobs.run_fixture import tone


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return load_base("nano")


@pytest.fixture
def audio(base: BaseModel, tmp_path: Path) -> SaveAudio:
    prompt = Prompt.of(base, tone(3.0), "Good morning.", "en")
    return SaveAudio(base=base, weights=tmp_path, prompt=prompt, language="en", sentences=1)


def write_save(folder: Path, base: BaseModel, phase: str, step: int, scale: float) -> Save:
    network = base.text_to_semantic if phase == "semantic" else base.acoustic
    name, tensor = next(entry for entry in network.state_dict().items() if entry[1].is_floating_point())
    weights, metadata = {name: tensor * scale}, {"base_digest": base.digest, "release": "nano", "phase": phase}
    save_weights(folder / f"{phase}-s{step:06d}.safetensors", weights, metadata)
    return Save(phase=phase, step=step, weights=weights, metadata=metadata)


def test_each_save_says_the_sentences_and_leaves_the_random_state_alone(audio: SaveAudio, base: BaseModel) -> None:
    saves = [write_save(audio.weights, base, "semantic", 30, 1.0), write_save(audio.weights, base, "wave", 40, 3.0)]
    before = torch.random.get_rng_state()
    (first,), (second,) = (audio.speak(save).items() for save in saves)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first[0] == "audio/at_saves/semantic-s000030/en-1.wav"
    assert second[0] == "audio/at_saves/wave-s000040/en-1.wav"
    assert first[1] != second[1], "the second half is heard in the second save only"
    for _, data in (first, second):
        with wave.open(io.BytesIO(data)) as file:
            assert 0.1 < file.getnframes() / file.getframerate() < 20
    assert audio.speak(saves[0]) == dict([first])


def test_what_cannot_be_said_stops_nothing(audio: SaveAudio, base: BaseModel, tmp_path: Path) -> None:
    save = write_save(tmp_path, base, "semantic", 30, float("nan"))
    other = SaveAudio(base=base, weights=tmp_path, prompt=audio.prompt, language="klingon", sentences=1)
    assert other.speak(save) == {}
    missing = Save(phase="wave", step=99, weights={}, metadata={})
    assert audio.speak(missing) == {}
