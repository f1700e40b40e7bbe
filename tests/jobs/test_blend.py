"""A voice between others: its timbre, its lineage, and whose consent it needs."""

import json
from pathlib import Path

import pytest
import torch

from gsv_core.synthesis.timbre import load_timbre, save_timbre
from jobs.blend import blend_folder, blend_voices, blends_of, plan_blend
from jobs.cli import main
from jobs.config import JobConfig
from jobs.forget import forget
from jobs.register import register_voice
from jobs.synth import Delivery, VoiceAddress, opened, speak
from jobs.tracking import Tracker
from jobs.voice_model import load_voice
from jobs.workspace import Workspace
from tests.jobs.run_fixture import tone, write_nano_run

ANNA = {"id": "c-anna", "who": "Anna", "for": "reading"}
BEN = {"id": "c-ben", "who": "Ben"}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace.open(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="module")
def tracker(workspace: Workspace) -> Tracker:
    tracker = Tracker(workspace.default_tracking_uri, "corpus")
    for number, (voice, consent, pitch) in enumerate((("anna", ANNA, 1.0), ("ben", BEN, 2.0), ("carl", None, 1.5))):
        run = write_nano_run(workspace.corpus, voice=voice, run_id=str(number) * 20, scale=1.01 + 0.02 * number)
        files = load_prompt_of_another_sound(run, pitch)
        save_timbre(run, files * (1 + number), {"wave": "wave-s000060"})
        register_voice(tracker, run, consent=consent)
    return tracker


def load_prompt_of_another_sound(run: Path, pitch: float) -> torch.Tensor:
    """Give the run's Prompt another wave; a timbre as wide as the base's."""
    from dataclasses import replace

    from gsv_core.checkpoints.base import load_base
    from gsv_core.synthesis.synthesiser import Prompt, Synthesiser

    prompt = Prompt.load(run)
    wave = torch.from_numpy(tone(3.0 * pitch)[:: int(pitch)].copy()) if pitch != 1.5 else prompt.wave.flip(0)
    prompt = replace(prompt, wave=wave)
    prompt.save(run)
    return Synthesiser(load_base("nano")).timbre_of(prompt)


def test_a_blend_speaks_with_the_largest_shares_weights_between_the_timbres(
    workspace: Workspace, tracker: Tracker
) -> None:
    plan = plan_blend(tracker.registry, ["ben:1", "anna:3"], "annaben")
    assert [(part.share.voice, part.share.weight) for part in plan.parts] == [("anna", 0.75), ("ben", 0.25)]
    version = blend_voices(plan, workspace, tracker)
    assert blend_voices(plan, workspace, tracker) == version
    with tracker.registry.files_of(tracker.registry.version_of("annaben")) as folder:
        blended = load_voice(folder)
    parts = {}
    for name in ("anna", "ben"):
        with opened(VoiceAddress(tracker_uri=tracker.store.uri, voice=name)) as voice:
            parts[name] = voice
    ours, theirs = blended.synthesiser.acoustic.state_dict(), parts["anna"].synthesiser.acoustic.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    heard = parts["anna"].synthesiser.timbre_of(parts["ben"].prompt)
    torch.testing.assert_close(blended.timbre, 0.75 * parts["anna"].timbre + 0.25 * heard)
    assert torch.equal(blended.prompt.tokens, parts["anna"].prompt.tokens)
    said = {name: voice.speak("Good morning.", "en") for name, voice in {**parts, "annaben": blended}.items()}
    assert len(set(said.values())) == 3
    # It has no other timbre than this one.
    assert blended.speak("Good morning.", "en", style="default") == said["annaben"]
    through = speak(tracker.store.uri, "annaben", "Good morning.", "en", delivery=Delivery())
    assert (through.wav, through.rate_hz) == said["annaben"]


def test_a_blend_has_the_lineage_and_the_consent_of_all(workspace: Workspace, tracker: Tracker) -> None:
    version = blend_voices(plan_blend(tracker.registry, ["anna", "ben"], "both"), workspace, tracker)
    tags = tracker.registry.tags_of(version)
    assert tags["consent_id"] == "c-anna+c-ben"
    assert (tags["consent.anna.who"], tags["consent.ben.who"]) == ("Anna", "Ben")
    parents = json.loads(tags["lineage.parents"])
    assert [(entry["voice"], entry["share"], entry["version"]) for entry in parents] == [
        ("anna", 0.5, 1),
        ("ben", 0.5, 1),
    ]


def test_without_the_consent_of_one_there_is_none_and_the_policy_decides(
    workspace: Workspace, tracker: Tracker
) -> None:
    with pytest.raises(ValueError, match="voice 'carl' has no consent, and a blend needs that of each"):
        plan_blend(tracker.registry, ["anna:0.9", "carl:0.1"], "mixed", require_consent=True)
    plan = plan_blend(tracker.registry, ["anna:0.9", "carl:0.1"], "mixed")
    assert plan.consent is None
    tags = tracker.registry.tags_of(blend_voices(plan, workspace, tracker))
    assert not any(name.startswith("consent") for name in tags)
    with pytest.raises(ValueError, match="has no consent"):
        blend_voices(plan, workspace, tracker, require_consent=True)


def test_what_cannot_be_blended_is_said(workspace: Workspace, tracker: Tracker) -> None:
    registry = tracker.registry
    with pytest.raises(ValueError, match="no voice 'dora'"):
        plan_blend(registry, ["anna", "dora"], "new")
    with pytest.raises(ValueError, match="two voices or more, each once, got anna, anna"):
        plan_blend(registry, ["anna:1", "anna:2"], "new")
    with pytest.raises(ValueError, match="--name ben: there is a voice of that name already"):
        plan_blend(registry, ["anna", "ben"], "ben")
    with pytest.raises(ValueError, match="expected VOICE:SHARE"):
        plan_blend(registry, ["anna:x", "ben"], "new")
    blend_voices(plan_blend(registry, ["anna", "ben"], "both"), workspace, tracker)
    with pytest.raises(ValueError, match="both is itself a blend; name the voices it was made of"):
        plan_blend(registry, ["both", "anna"], "new")


def test_voices_of_another_base_are_refused_and_nothing_is_registered(workspace: Workspace, tracker: Tracker) -> None:
    run = write_nano_run(workspace.corpus, voice="eve", run_id="e" * 20)
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    (run / "run.json").write_text(json.dumps(record | {"base_digest": "f" * 64}), encoding="utf-8")
    register_voice(tracker, run)
    plan = plan_blend(tracker.registry, ["anna:2", "eve"], "none")
    with pytest.raises(ValueError, match=r"one base are needed: anna is of nano .*, eve of nano ffffffffffff"):
        blend_voices(plan, workspace, tracker)
    assert "none" not in tracker.registry.voices()


def test_the_command_says_what_goes_in_and_registers(
    workspace: Workspace, tracker: Tracker, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["blend", "anna:0.6", "ben:0.4", "--name", "fromcli", "--workspace", str(workspace.root)]
    assert main([*common, "--dry-run"]) == 0
    assert "nothing was done" in capsys.readouterr().out
    assert "fromcli" not in tracker.registry.voices()
    assert main([*common, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["voice"], facts["consent"], facts["model"], facts["version"]) == ("fromcli", True, "gsv-fromcli", 1)
    assert [part["share"] for part in facts["parts"]] == [0.6, 0.4]
    run = next((workspace.root / "blended" / "voices" / "fromcli" / "runs").iterdir())
    assert load_timbre(run)[1]["blend"] == "anna:0.6 ben:0.4"
    assert main(["blend", "anna", "--name", "x", "--workspace", str(workspace.root)]) == 2
    assert "two voices or more" in capsys.readouterr().err


def test_a_blend_goes_with_the_voice_that_is_forgotten(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path)
    tracker = Tracker(workspace.default_tracking_uri, "corpus")
    for number, voice in enumerate(("anna", "ben", "carl")):
        register_voice(tracker, write_nano_run(workspace.corpus, voice=voice, run_id=str(number) * 20))
    for name, parts in (("annaben", ["anna", "ben"]), ("bencarl", ["ben:3", "carl"])):
        blend_voices(plan_blend(tracker.registry, parts, name), workspace, tracker)
    assert blends_of(tracker.registry, "carl") == ["bencarl"]
    assert blends_of(tracker.registry, "ben") == ["annaben", "bencarl"]
    config = JobConfig()
    assert forget("carl", workspace, config).counts["blends"] == 1
    assert tracker.registry.voices() == ["anna", "annaben", "ben", "bencarl", "carl"]
    assert forget("carl", workspace, config, really=True).done
    assert tracker.registry.voices() == ["anna", "annaben", "ben"]
    assert not blend_folder(workspace, "bencarl").exists()
    assert blend_folder(workspace, "annaben").exists()
