"""`gsv train` in a process of its own on a copy of the corpus, to be struck, and what it should come to."""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from jobs.workspace import Workspace

ROOT = Path(__file__).resolve().parents[2]
SEMANTIC = {"steps": 60, "save_every": 20, "evaluate_every": 20, "warm_up_steps": 2}
WAVE = {"steps": 12, "save_every": 6, "evaluate_every": 6, "warm_up_steps": 2, "longest_frames": 96}
_PATIENCE_S = 600.0


def digests(run_dir: Path) -> dict[str, str]:
    """Name → digest of what training leaves."""
    paths = [*(run_dir / "weights").glob("*.safetensors"), run_dir / "curves.jsonl", run_dir / "prompt.json"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@dataclass(frozen=True)
class Undisturbed:
    """What two voices come to, and the workspace with their corpus."""

    workspace: Workspace
    runs: dict[str, str]
    """Voice → run folder below the workspace."""
    files: dict[str, dict[str, str]]
    steps: int


class Training:
    """`gsv train` at work on a copy of the corpus."""

    def __init__(self, made: Undisturbed, workspace: Path, *more: str) -> None:
        self.workspace = workspace
        if not workspace.exists():
            shutil.copytree(made.workspace.root, workspace, ignore=shutil.ignore_patterns("runs"))
        self._made = made
        self._err = workspace / "stderr.txt"
        command = [sys.executable, "-m", "jobs.cli", "train", "--workspace", str(workspace), "--cpus=2", "--json"]
        command += ["--set", f"training.semantic={json.dumps(SEMANTIC)}", "--set", f"training.wave={json.dumps(WAVE)}"]
        with self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [*command, *more],
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
                stderr=err,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    def steps(self) -> int:
        """How far both voices are together."""
        path = self.workspace / "training.json"
        if not path.is_file():
            return 0
        return sum(voice["steps"] for voice in json.loads(path.read_text())["voices"].values())

    def wait_for(self, steps: int) -> None:
        give_up = time.monotonic() + _PATIENCE_S
        while self.steps() < steps:
            assert self.process.poll() is None, self.stderr()[-3000:]
            assert time.monotonic() < give_up, "the program hangs"
            time.sleep(0.1)

    def end(self) -> int:
        return self.process.wait(timeout=_PATIENCE_S)

    def stderr(self) -> str:
        return self._err.read_text(errors="replace")

    def files(self) -> dict[str, dict[str, str]]:
        return {voice: digests(self.workspace / run) for voice, run in self._made.runs.items()}


def moment(made: Undisturbed, seed: int) -> int:
    """After how many steps to strike."""
    return random.Random(seed).randint(1, made.steps * 3 // 4)
