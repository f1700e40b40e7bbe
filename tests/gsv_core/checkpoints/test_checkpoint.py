import pickle

import pytest
import torch

from gsv_core.checkpoints.checkpoint import Checkpoint, latest_checkpoint, save_checkpoint

IDENTITY = {"voice": "anna", "release": "nano"}


def checkpoint(step):
    state = {"network": {"weight": torch.full((2,), float(step))}, "steps_done": step}
    return Checkpoint(step=step, identity=IDENTITY, state=state, records=[{"step": step, "metrics": {"mel": 1.5}}])


def test_the_newest_comes_back_and_two_stay(tmp_path):
    for step in (9, 10, 1_000_000):
        save_checkpoint(tmp_path, checkpoint(step))
    newest = latest_checkpoint(tmp_path, IDENTITY)
    assert newest is not None
    assert newest.step == 1_000_000
    assert newest.records == checkpoint(1_000_000).records
    assert torch.equal(newest.state["network"]["weight"], torch.full((2,), 1e6))
    assert len(list(tmp_path.iterdir())) == 2


def test_a_missing_or_empty_folder_has_none(tmp_path):
    assert latest_checkpoint(tmp_path / "nowhere", IDENTITY) is None
    (tmp_path / ".step-000003.pt.7.tmp").write_bytes(b"half a file of a killed run")
    assert latest_checkpoint(tmp_path, IDENTITY) is None


def test_another_runs_checkpoint_is_refused(tmp_path):
    save_checkpoint(tmp_path, checkpoint(3))
    with pytest.raises(ValueError, match=r"differs in voice"):
        latest_checkpoint(tmp_path, IDENTITY | {"voice": "bert"})


class _Runs:
    def __reduce__(self):
        return (print, ("executed",))


def test_nothing_in_a_file_is_executed(tmp_path, capsys):
    (tmp_path / "step-000001.pt").write_bytes(pickle.dumps(_Runs()))
    with pytest.raises(ValueError, match=r"step-000001\.pt cannot be read as a checkpoint"):
        latest_checkpoint(tmp_path, IDENTITY)
    assert capsys.readouterr().out == ""
