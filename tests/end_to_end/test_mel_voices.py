"""A voice of v3 or v4 through the product: trained by LoRA, scored, spoken, exported for GPT-SoVITS, imported back."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import jobs.export
import jobs.import_
import jobs.train
from gsv_core.checkpoints.base import BaseModel, load_published
from gsv_core.checkpoints.releases import Release
from gsv_core.checkpoints.upstream_recognition import Part, inspect_file
from gsv_core.checkpoints.weights import load_weights, write_json
from gsv_core.features import extract_features
from gsv_core.networks.lora import fold_factors
from gsv_core.synthesis.sampling import Sampling
from gsv_core.synthesis.synthesiser import Prompt, Synthesiser
from gsv_core.text.front_end import phonemise
from gsv_core.training.recipes import choose_recipe
from jobs.evaluate import PairTask, score_pair
from jobs.export import export_run
from jobs.import_ import Reference, changed_semantic, changed_wave, plan_import
from jobs.scoring import Models, Sentence
from jobs.timbre import write_timbres
from jobs.train import VoiceTask, saved_weights, train_voice
from pipelines.engines.flac import encode_flac
from pipelines.rows import RATE_HZ, SelectionRow, Utterance
from pipelines.shard_reader import StoredExample
from tests.gsv_core.made_bases import small_mel_release, write_mel_release
from tests.gsv_core.made_items import made_wave

TEXT = "Good morning."
CLIPS = 3


@pytest.fixture(scope="module", params=[Release.V3, Release.V4])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    folder = tmp_path_factory.mktemp("models")
    small = small_mel_release(request.param)
    assert small.semantic_to_mel is not None
    # As deep as a file of GPT-SoVITS always is, or it would not count as whole.
    spec = replace(small, semantic_to_mel=replace(small.semantic_to_mel, condition_layers=8))
    write_mel_release(folder, spec)
    return load_published(spec, folder)


@pytest.fixture(scope="module")
def examples(base: BaseModel) -> list[StoredExample]:
    """What a corpus prepared on `base` would hold of three clips."""
    made = []
    for number in range(CLIPS):
        wave, text = made_wave(number, 3.2 + 0.2 * number).numpy(), phonemise(TEXT, "en", release=base.spec.symbols)
        features = extract_features(base, wave, text, loud=True)
        utterance = Utterance(
            clip_id=f"{number:020x}",
            recording_id="r",
            voice="anna",
            start_sample=0,
            num_samples=len(wave),
            text=TEXT,
            language="en",
            confidence=None,
            phoneme_ids=text.ids,
        )
        made.append(
            StoredExample(
                utterance=utterance,
                description={"derived_from": {"semantic": base.token_digest}},
                flac=encode_flac(wave, RATE_HZ),
                wave=wave,
                rate_hz=RATE_HZ,
                arrays={"content": features.content, "semantic": features.tokens},
            )
        )
    return made


@pytest.fixture(scope="module")
def task(base: BaseModel, examples: list[StoredExample], tmp_path_factory: pytest.TempPathFactory) -> VoiceTask:
    """The voice, trained for two steps of each phase as the recipe of a few minutes says."""
    rows = tuple(
        SelectionRow(
            clip_id=example.utterance.clip_id,
            unit_id="u",
            keep=True,
            reason="",
            split="held_out" if number == 0 else "train",
            prompt=number > 0,
            num_samples=len(example.wave),
        )
        for number, example in enumerate(examples)
    )
    few = {"steps": 2, "save_every": 2, "evaluate_every": 2, "warm_up_steps": 0, "batch_size": 2, "rank": 2}
    few["longest_frames"] = 48
    recipe = choose_recipe(300, base.release, semantic={k: few[k] for k in few if k != "rank"}, wave=few)
    record = {
        "schema_version": 1,
        "run_id": "r",
        "voice": "anna",
        "language": "en",
        "release": str(base.release),
        "base_digest": base.digest,
        "token_digest": base.token_digest,
        "recipe": recipe.record(),
        "utterances_train": CLIPS - 1,
    }
    run_dir = tmp_path_factory.mktemp("run")
    made = VoiceTask(voice="anna", run_id="r", run_dir=str(run_dir), corpus="", rows=rows, recipe=recipe, record=record)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs.train, "read_examples", lambda *_: examples)
        assert train_voice(made, base)
    pair = {"semantic": "semantic-s000002", "wave": "wave-s000002"}
    write_json(run_dir / "scores.json", {"schema_version": 1, "pairs": [pair], "best": pair})
    write_json(run_dir / "done.json", {"run_id": "r"})
    return made


def test_it_trains_by_lora_and_speaks(base: BaseModel, task: VoiceTask) -> None:
    run_dir = Path(task.run_dir)
    assert saved_weights(run_dir) == {"semantic": ["semantic-s000002"], "wave": ["wave-s000002"]}
    tensors, metadata = load_weights(run_dir / "weights" / "wave-s000002.safetensors")
    assert metadata["lora_rank"] == "2"
    assert any(name.endswith(".lora_B") for name in tensors)
    speak = {
        trained: Synthesiser(
            base,
            wave_weights=run_dir / "weights" / "wave-s000002.safetensors" if trained else None,
            sampling=Sampling(longest_tokens=20),
        ).speak
        for trained in (True, False)
    }
    spoken = {trained: one(TEXT, "en", Prompt.load(run_dir), steps=2) for trained, one in speak.items()}
    assert spoken[True].rate_hz == base.spec.output_rate_hz
    assert len(spoken[True].wave) == len(spoken[False].wave)
    assert not np.array_equal(spoken[True].wave, spoken[False].wave)


def test_it_is_measured_against_a_recording_at_the_recordings_rate(
    base: BaseModel, task: VoiceTask, examples: list[StoredExample], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Deaf:
        name = "deaf"

        def speaks(self, _: str) -> bool:
            return False

        def embed(self, wave: np.ndarray, rate_hz: int) -> np.ndarray:
            return np.ones(2, dtype=np.float32)

    monkeypatch.setattr(jobs.evaluate, "read_examples", lambda *_: examples[:1])
    row = next(row for row in task.rows if row.clip_id == examples[0].utterance.clip_id)
    sentence = Sentence(name=row.clip_id, text=TEXT, language="en", row=row)
    pair = PairTask(
        voice="anna",
        run_dir=task.run_dir,
        corpus=str(task.run_dir),
        kind="pair",
        sentences=(sentence,),
        centroid=(1.0, 1.0),
        seed=0,
        prompt=row,
        semantic="semantic-s000002",
        wave="wave-s000002",
    )
    write_timbres(Path(task.run_dir), base, saved_weights(Path(task.run_dir))["wave"], examples)
    (scored,) = score_pair(pair, Models(recogniser=Deaf(), verifier=Deaf(), quality=None, base=base))
    numbers, seconds = scored["numbers"], len(examples[0].wave) / RATE_HZ
    assert numbers["duration_ratio"] == pytest.approx(scored["seconds"] / seconds, rel=0.01)
    assert np.isfinite(numbers["mel_cepstral_distance"])


def test_it_goes_out_as_lora_and_comes_back(
    base: BaseModel, task: VoiceTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs.export, "load_base", lambda *_: base)
    # GPT-SoVITS has fixed sizes that a base of this width has not.
    monkeypatch.setattr(jobs.export, "check_buildable", lambda _: None)
    exported = export_run(Path(task.run_dir), tmp_path)
    assert exported.lora_rank == 2
    found = inspect_file(exported.files[1])
    assert (found.part, found.releases, found.lora_rank) == (Part.LORA, (base.release,), 2)
    reference = Path(task.run_dir) / "prompt.flac"
    plan = plan_import(*exported.files, voice="anna", reference=Reference(path=reference, text=TEXT, language="en"))
    assert plan.release is base.release
    weights = Path(task.run_dir) / "weights"
    # GPT-SoVITS has no adapters for GPT: they go out, and so come back, as the matrices they were added to.
    gpt = fold_factors(load_weights(weights / "semantic-s000002.safetensors")[0], base.text_to_semantic.state_dict())
    for ours, back in (
        (gpt, changed_semantic(plan.semantic.path, base)),
        (load_weights(weights / "wave-s000002.safetensors")[0], changed_wave(plan.wave.path, base)),
    ):
        # What differs from the base by less than half precision can tell is not brought back.
        assert back.keys() <= ours.keys()
        assert {name for name in ours if name.endswith(".lora_B")} <= back.keys()
        assert all(torch.equal(tensor.half(), ours[name].half()) for name, tensor in back.items())
        assert back
