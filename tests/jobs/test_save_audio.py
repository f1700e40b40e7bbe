"""What a save sounds like, without training noticing."""

import io
import wave
from dataclasses import replace
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
    # The last of GPT's: it changes whatever is said.
    place = -1 if phase == "semantic" else 0
    name, tensor = [entry for entry in network.state_dict().items() if entry[1].is_floating_point()][place]
    weights, metadata = {name: tensor * scale}, {"base_digest": base.digest, "release": "nano", "phase": phase}
    save_weights(folder / f"{phase}-s{step:06d}.safetensors", weights, metadata)
    return Save(phase=phase, step=step, weights=weights, metadata=metadata)


def test_saves_of_the_second_half_say_the_sentences_with_the_newest_first_half(
    audio: SaveAudio, base: BaseModel
) -> None:
    earlier = write_save(audio.weights, base, "wave", 20, 1.0)
    (before_gpt,) = audio.speak(earlier).items()
    gpt, later = write_save(audio.weights, base, "semantic", 30, 3.0), write_save(audio.weights, base, "wave", 40, 3.0)
    state = torch.random.get_rng_state()
    (first,), (second,) = (audio.speak(save).items() for save in (earlier, later))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert audio.speak(gpt) == {}
    assert first[0] == "audio/at_saves/wave-s000020/en-1.wav"
    assert second[0] == "audio/at_saves/wave-s000040/en-1.wav"
    assert len({before_gpt[1], first[1], second[1]}) == 3
    for _, data in (first, second):
        with wave.open(io.BytesIO(data)) as file:
            assert 0.1 < file.getnframes() / file.getframerate() < 20
    assert audio.speak(earlier) == dict([first])


def test_where_the_second_half_does_not_train_the_first_is_heard(audio: SaveAudio, base: BaseModel) -> None:
    save = write_save(audio.weights, base, "semantic", 30, 1.0)
    ((name, _),) = replace(audio, phase="semantic").speak(save).items()
    assert name == "audio/at_saves/semantic-s000030/en-1.wav"


def test_what_cannot_be_said_stops_nothing(audio: SaveAudio, base: BaseModel, tmp_path: Path) -> None:
    save = write_save(tmp_path, base, "wave", 30, float("nan"))
    other = SaveAudio(base=base, weights=tmp_path, prompt=audio.prompt, language="klingon", sentences=1)
    assert other.speak(save) == {}
    missing = Save(phase="wave", step=99, weights={}, metadata={})
    assert audio.speak(missing) == {}
