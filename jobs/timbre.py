"""The training clips of a voice to its mean timbre, which it speaks in where no recording is to be followed.

Each saved candidate of the acoustic network hears them for itself, so that every pair is scored as it would be served;
the chosen one's is the voice's, `timbre.safetensors` beside its scores. Held-out clips have no part in it.
Axes: G timbre.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from gsv_core.checkpoints.base import BaseModel
from gsv_core.checkpoints.weights import write_atomically
from gsv_core.synthesis.synthesiser import Synthesiser
from gsv_core.synthesis.timbre import FILE_NAME, load_timbre, save_timbre
from pipelines.shard_reader import StoredExample

MOST_CLIPS = 200
"""A quarter of an hour or so; the mean over more hardly moves."""
_OF_BASE = "base"


def write_timbres(run_dir: Path, base: BaseModel, waves: Sequence[str], examples: Sequence[StoredExample]) -> None:
    """Compute and store the mean over `examples`, of the training split, as the base and the saved `waves` hear it.

    Of very many clips the first by id are heard, which is as good as a draw.

    Raises:
        ValueError: a file of weights is damaged, or does not belong to the base.
    """
    heard = sorted(examples, key=lambda example: example.utterance.clip_id)[:MOST_CLIPS]
    for wave in (None, *waves):
        folder = _folder(run_dir, wave)
        known = load_timbre(folder)
        about = {"wave": wave or _OF_BASE, "clips": str(len(heard)), "base_digest": base.digest}
        if known is not None and known[1].items() >= about.items():
            continue
        synthesiser = Synthesiser(base, wave_weights=run_dir / "weights" / f"{wave}.safetensors" if wave else None)
        timbres = [
            synthesiser.timbre_heard(torch.from_numpy(example.wave), example.training_item().speaker_vector)
            for example in heard
        ]
        save_timbre(folder, torch.stack(timbres).mean(dim=0), about)


def timbre_of(run_dir: Path, wave: str | None) -> Tensor:
    """(G,) of a saved candidate, or of the base, that `write_timbres` has stored."""
    found = load_timbre(_folder(run_dir, wave))
    assert found is not None, "the timbres of a run are written before its pairs speak"
    return found[0]


def choose_timbre(run_dir: Path, wave: str | None) -> None:
    """Make the timbre of the chosen candidate that of the voice."""
    chosen = _folder(run_dir, wave) / FILE_NAME

    def copy(path: Path) -> None:
        shutil.copyfile(chosen, path)

    write_atomically(run_dir / FILE_NAME, copy)


def _folder(run_dir: Path, wave: str | None) -> Path:
    return run_dir / "timbres" / (wave or _OF_BASE)
