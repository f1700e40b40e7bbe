"""A run's second home: what is copied, what is dropped, and what is taken from there when the folder is gone."""

import shutil
from pathlib import Path

import pytest

from jobs.mirror import Mirror
from pipelines.storage import LocalStorage, StorageError


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    write(folder / "checkpoints" / "semantic" / "step-000010.pt", "ten")
    write(folder / "weights" / "semantic-s000010.safetensors", "weights")
    write(folder / "weights" / ".semantic-s000020.safetensors.7.tmp", "half a file")
    write(folder / "run.json", "{}")
    return folder


def mirror_of(run_dir: Path, tmp_path: Path) -> Mirror:
    return Mirror(run_dir, LocalStorage(tmp_path / "store"), "anna/r1")


def test_a_lost_folder_comes_back_as_it_was(run_dir: Path, tmp_path: Path) -> None:
    mirror_of(run_dir, tmp_path).copy()
    (run_dir / "weights" / ".semantic-s000020.safetensors.7.tmp").unlink()
    before = files(run_dir)
    shutil.rmtree(run_dir)
    assert mirror_of(run_dir, tmp_path).fetch()
    assert files(run_dir) == before


def test_what_the_run_drops_is_dropped_there(run_dir: Path, tmp_path: Path) -> None:
    mirror = mirror_of(run_dir, tmp_path)
    mirror.copy()
    write(run_dir / "checkpoints" / "semantic" / "step-000020.pt", "twenty")
    (run_dir / "checkpoints" / "semantic" / "step-000010.pt").unlink()
    mirror.copy()
    assert files(tmp_path / "store" / "anna" / "r1") == {
        "checkpoints/semantic/step-000020.pt": "twenty",
        "run.json": "{}",
        "weights/semantic-s000010.safetensors": "weights",
    }


def test_a_folder_with_something_to_go_on_from_is_left_alone(run_dir: Path, tmp_path: Path) -> None:
    mirror_of(run_dir, tmp_path).copy()
    write(run_dir / "checkpoints" / "semantic" / "step-000010.pt", "another ten")
    assert not mirror_of(run_dir, tmp_path).fetch()
    assert (run_dir / "checkpoints" / "semantic" / "step-000010.pt").read_text() == "another ten"


def test_nothing_there_is_nothing_fetched(tmp_path: Path) -> None:
    assert not mirror_of(tmp_path / "run", tmp_path).fetch()
    assert not (tmp_path / "run").exists()


def test_names_that_are_not_ours_are_not_fetched(run_dir: Path, tmp_path: Path) -> None:
    mirror_of(run_dir, tmp_path).copy()
    write(tmp_path / "store" / "anna" / "r1" / ".profile", "echo")
    write(tmp_path / "store" / "anna" / "r1" / "weights" / "run.sh", "echo")
    shutil.rmtree(run_dir)
    mirror_of(run_dir, tmp_path).fetch()
    assert not (run_dir / ".profile").exists()
    assert not (run_dir / "weights" / "run.sh").exists()


def test_a_dead_store_stops_nothing_and_gets_the_rest_later(run_dir: Path, tmp_path: Path) -> None:
    class Dying(LocalStorage):
        dead = True

        def write(self, path: str, data: bytes) -> None:
            if self.dead:
                raise StorageError("no answer")
            super().write(path, data)

    store = Dying(tmp_path / "store")
    mirror = Mirror(run_dir, store, "anna/r1")
    with mirror.kept():
        pass
    assert not (tmp_path / "store").exists()
    store.dead = False
    with mirror.kept():
        pass
    assert "run.json" in files(tmp_path / "store" / "anna" / "r1")
