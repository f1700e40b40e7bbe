import pickle
import resource
import signal

import pytest
import torch

from gsv_core.checkpoints.checkpoint import Checkpoint, SaveError, latest_checkpoint, save_checkpoint

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


def test_a_damaged_newest_is_passed_over(tmp_path):
    for step in (9, 10):
        save_checkpoint(tmp_path, checkpoint(step))
    (tmp_path / "step-000010.pt").write_bytes((tmp_path / "step-000010.pt").read_bytes()[:50])
    assert latest_checkpoint(tmp_path, IDENTITY).step == 9
    (tmp_path / "step-000009.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"step-000010\.pt cannot be read as a checkpoint, nor can an older one"):
        latest_checkpoint(tmp_path, IDENTITY)


class _Failing:
    """A `torch.save` that fails so many times, as a full disk makes it."""

    def __init__(self, times, error):
        self.times, self.error, self.save = times, error, torch.save

    def __call__(self, content, path):
        self.times -= 1
        if self.times >= 0:
            raise self.error
        self.save(content, path)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("file write failed")])
def test_a_storage_that_fails_is_asked_again(tmp_path, monkeypatch, error):
    monkeypatch.setattr("gsv_core.checkpoints.checkpoint.PAUSES_S", (0.0, 0.0))
    save_checkpoint(tmp_path, checkpoint(9))
    monkeypatch.setattr(torch, "save", _Failing(2, error))
    save_checkpoint(tmp_path, checkpoint(10))
    assert latest_checkpoint(tmp_path, IDENTITY).step == 10
    monkeypatch.setattr(torch, "save", _Failing(3, error))
    with pytest.raises(SaveError, match=r"step-000011\.pt cannot be written .* run the same command again") as refusal:
        save_checkpoint(tmp_path, checkpoint(11))
    assert "\n" not in str(refusal.value)
    # What was saved before is still there, and nothing half.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000009.pt", "step-000010.pt"]


def test_a_full_disk_is_a_failed_save(tmp_path, monkeypatch):
    """Whatever torch makes of it, with the real file system's own refusal."""
    monkeypatch.setattr("gsv_core.checkpoints.checkpoint.PAUSES_S", ())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        big = Checkpoint(step=1, identity=IDENTITY, state={"weight": torch.zeros(100_000)}, records=[])
        with pytest.raises(SaveError, match="cannot be written"):
            save_checkpoint(tmp_path, big)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert list(tmp_path.iterdir()) == []
