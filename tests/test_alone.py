"""gsv_core where only torch, numpy and safetensors are installed: whatever else is here is hidden from it.

`python -m tests.test_alone TASK NAME...` hides all but what NAMEs bring and does a task; each test starts one.
"""

import importlib
import json
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("torch", "numpy", "safetensors")
SPEECH = ("soxr", "g2p_en", "inflect", "nltk", "wordsegment")
"""What else a sentence of English takes."""
NAMED = (
    *("ray", "mlflow", "webdataset", "whisperx", "speechbrain", "transformers", "torchaudio"),
    *("pipelines.rows", "jobs.config"),
)
"""Of what is hidden, what gsv_core is said to work without; installed or not, none may be found."""


def test_every_module_can_be_imported():
    imported = _alone("import_all")
    assert "gsv_core.training.wave_trainer" in imported
    assert "gsv_core.checkpoints.hub" in imported


def test_nano_is_built_and_both_trainers_take_a_step():
    numbers = _alone("train")
    assert set(numbers) == {"semantic", "wave"}
    assert all(abs(number) < float("inf") for losses in numbers.values() for number in losses.values())


def test_a_sentence_is_spoken():
    import pytest  # not above: the process that hides such packages reads this file too

    missing = [name for name in SPEECH if find_spec(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    assert _alone("speak", extra=SPEECH)["samples"] > 0


def _alone(task: str, *, extra: Sequence[str] = ()) -> Any:
    """What `task` prints when it runs with nothing but what is NEEDED and `extra`."""
    command = [sys.executable, "-m", "tests.test_alone", task, *NEEDED, *extra]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


# --- in the process of its own


class OnlyVisible:
    """Finds what `finder` finds, if it belongs to Python, to gsv_core, to the tests or to `visible`."""

    def __init__(self, finder: Any, visible: set[str]) -> None:
        self.finder = finder
        self.visible = visible | sys.stdlib_module_names | {"gsv_core", "tests"}

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        # Python's own list of its modules lacks the one that says how it was built.
        seen = name.partition(".")[0] in self.visible or name.startswith("_sysconfigdata")
        return self.finder.find_spec(name, path, target) if seen else None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.finder, name)  # what lists installed distributions


def modules_of(distributions: Iterable[str]) -> set[str]:
    """Names of the modules at the top of `distributions` and of all they require."""
    modules: set[str] = set()
    known: set[str] = set()
    open_names = list(distributions)
    while open_names:
        name = re.sub(r"[-_.]+", "-", open_names.pop()).lower()
        if name in known:
            continue
        known.add(name)
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # required elsewhere, on another system
        modules |= {file.parts[0].partition(".")[0] for file in found.files or ()}
        for requirement in found.requires or ():
            if "extra ==" not in requirement:
                open_names.append(re.split(r"[^\w.-]", requirement, maxsplit=1)[0])
    return modules


def import_all() -> list[str]:
    import gsv_core

    names = [module.name for module in pkgutil.walk_packages(gsv_core.__path__, "gsv_core.")]
    for name in names:
        importlib.import_module(name)
    return names


def train() -> dict[str, dict[str, float]]:
    """The numbers of one step of each trainer, on noise."""
    import torch

    from gsv_core.checkpoints.base import load_base
    from gsv_core.training.batches import TrainingItem
    from gsv_core.training.schedules import PhasePlan
    from gsv_core.training.semantic_trainer import SemanticTrainer
    from gsv_core.training.wave_trainer import WaveTrainer

    torch.set_num_threads(1)
    base = load_base("nano")
    draw = torch.Generator().manual_seed(1)
    assert base.speaker_encoder is not None
    items = []
    for number in range(2):
        wave = 0.1 * torch.randn(32_000, generator=draw)
        content = base.content_encoder.encode(wave[::2])
        item = TrainingItem(
            clip_id=f"clip{number}",
            phoneme_ids=torch.randint(1, 700, (8,), generator=draw),
            tokens=base.semantic_to_wave.encode_tokens(content.T[None])[0],
            content=content.half(),
            speaker_vector=base.speaker_encoder(wave[None, ::2])[0].detach().half(),
            wave=wave,
        )
        items.append(item)
    plan = PhasePlan(steps=1, batch_size=2, learning_rate=1e-4, longest_frames=48)
    semantic, wave_trainer = SemanticTrainer(base, plan, voice="anna"), WaveTrainer(base, plan, voice="anna")
    return {
        "semantic": semantic.step(semantic.collate(items)),
        "wave": wave_trainer.step(wave_trainer.collate(items)),
    }


def speak() -> dict[str, int]:
    import torch

    from gsv_core.checkpoints.base import load_base
    from gsv_core.synthesis.sampling import Sampling
    from gsv_core.synthesis.synthesiser import Prompt, Synthesiser

    torch.set_num_threads(1)
    base = load_base("nano")
    wave = 0.1 * torch.randn(48_000, generator=torch.Generator().manual_seed(1))
    prompt = Prompt.of(base, wave.numpy(), "Hello there.", "en")
    speech = Synthesiser(base, sampling=Sampling(longest_tokens=12)).speak("Good morning to you.", "en", prompt)
    return {"samples": len(speech.wave)}


def main(task: str, *distributions: str) -> None:
    visible = modules_of(distributions)
    sys.meta_path[:] = [OnlyVisible(finder, visible) for finder in sys.meta_path]
    for name in NAMED:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        raise RuntimeError(f"{name} should be hidden")
    tasks: dict[str, Callable[[], object]] = {"import_all": import_all, "train": train, "speak": speak}
    json.dump(tasks[task](), sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
