"""Faults, through the real program: killed processes, a full disk, a bad object store, a wrong clock.

Whatever is struck, and when: run again, and the corpus is byte for byte that of a run that nothing disturbed.
"""

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.cli import main
from pipelines.storage import open_storage
from tests.end_to_end.bad_store import bad_store
from tests.end_to_end.drills import (
    Outcome,
    Program,
    Undisturbed,
    below,
    digests,
    disturbed,
    kill,
    several_voices,
    undisturbed,
)

SEEDS = range(20)


def seeds(*, quick: bool) -> list[Any]:
    """All of them for `make drills`; for the quick tests the first alone, or none."""
    return [pytest.param(seed, marks=() if quick and seed == 0 else pytest.mark.slow) for seed in SEEDS]


@pytest.fixture(scope="module")
def made(demo_voices: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    recordings = several_voices(demo_voices, tmp_path_factory.mktemp("recordings") / "r")
    made = undisturbed(recordings, tmp_path_factory.mktemp("undisturbed"), "--cpus=2")
    assert len([path for path in made.files if path.endswith(".done")]) == 4
    return made


def assert_ended_well(outcome: Outcome) -> None:
    """Done, and its standard output is JSON for a program, whatever Ray had to say of the dead."""
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    assert len(json.loads(outcome.stdout)["voices"]) == 4


def assert_run_again_is_identical(made: Undisturbed, workspace: Path) -> None:
    outcome = Program(made.recordings, workspace, "--cpus=2").end()
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    assert digests(workspace) == made.files


@pytest.mark.parametrize("seed", seeds(quick=True))
def test_a_killed_worker(made: Undisturbed, tmp_path: Path, seed: int) -> None:
    def strike(program: Program) -> bool:
        workers = program.workers()
        return bool(workers) and kill(workers[seed % len(workers)])

    program = disturbed(made, tmp_path, strike, seed, "--cpus=2")
    assert_ended_well(program.end())
    assert digests(program.workspace) == made.files


@pytest.mark.parametrize("seed", seeds(quick=False))
def test_a_killed_actor(made: Undisturbed, tmp_path: Path, seed: int) -> None:
    def strike(program: Program) -> bool:
        actors = program.workers("MapWorker") + program.workers("Board")
        return bool(actors) and kill(actors[seed % len(actors)])

    program = disturbed(made, tmp_path, strike, seed, "--cpus=2")
    assert_ended_well(program.end())
    assert digests(program.workspace) == made.files


@pytest.mark.parametrize("seed", seeds(quick=True))
def test_a_killed_driver(made: Undisturbed, tmp_path: Path, seed: int) -> None:
    def strike(program: Program) -> bool:
        program.kill()
        return True

    program = disturbed(made, tmp_path, strike, seed, "--cpus=2")
    for path, digest in digests(program.workspace).items():
        assert made.files[path] == digest, f"{path} was left half-written"
    assert_run_again_is_identical(made, program.workspace)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["/raylet/raylet ", "dashboard/agent.py"])
def test_a_killed_part_of_ray_itself_ends_the_run_in_one_line(made: Undisturbed, tmp_path: Path, part: str) -> None:
    def strike(program: Program) -> bool:
        up = bool(program.workers("MapWorker"))
        return up and any(map(kill, program.ray_processes(part)))

    program = disturbed(made, tmp_path, strike, 1, "--cpus=2")
    outcome = program.end()
    assert outcome.returncode == 1
    assert outcome.stdout == ""
    last = outcome.stderr.strip().splitlines()[-1]
    assert last.startswith("gsv: ")
    assert "the Ray node that the job was started on is gone" in last
    assert "Traceback" not in outcome.stderr
    assert_run_again_is_identical(made, program.workspace)


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[Any]:
    """A head of one CPU, to which tests add nodes."""
    from ray.cluster_utils import Cluster

    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        yield cluster
    finally:
        cluster.shutdown()


@pytest.mark.parametrize("seed", seeds(quick=False))
def test_a_killed_node(made: Undisturbed, ray_cluster: Any, tmp_path: Path, seed: int) -> None:
    node = ray_cluster.add_node(num_cpus=1)
    ray_cluster.wait_for_nodes()

    def strike(program: Program) -> bool:
        raylet = node.all_processes["raylet"][0].process.pid
        others = below(raylet)
        struck = kill(raylet)
        for pid in others:  # as when a machine loses its power: all at once
            kill(pid)
        return struck

    program = disturbed(made, tmp_path, strike, seed, "--cpus=2", f"--ray-address={ray_cluster.address}")
    outcome = program.end()
    ray_cluster.remove_node(node, allow_graceful=False)
    assert_ended_well(outcome)
    assert digests(program.workspace) == made.files


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real disk of a megabyte: too small for the shards, not for the plan."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("only root may mount a small disk")
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.slow
def test_a_full_disk(made: Undisturbed, small_disk: Path) -> None:
    outcome = Program(made.recordings, small_disk, "--cpus=2").end()
    assert outcome.returncode == 1
    last = outcome.stderr.strip().splitlines()[-1]
    assert "No space left on device" in last
    assert "run the same command again" in last
    for path, digest in digests(small_disk).items():
        assert made.files.get(path) == digest, f"{path} was left half-written"
    subprocess.run(["mount", "-o", "remount,size=100m", small_disk], check=True)
    assert_run_again_is_identical(made, small_disk)


_CLOCK = """
import time
_true = time.time
_began = time.monotonic()

def _time():
    # Half an hour back every second one, and two years ahead to begin with.
    return _true() + 63_072_000 - 1_800 * (int(time.monotonic() - _began) % 2)

time.time = _time
"""


@pytest.mark.slow
def test_a_clock_that_jumps(made: Undisturbed, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(_CLOCK, encoding="utf-8")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    environment = {"PYTHONPATH": path, "TZ": "Pacific/Kiritimati"}
    workspace = tmp_path / "w"
    outcome = Program(made.recordings, workspace, "--cpus=2", environment=environment).end()
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    assert digests(workspace) == made.files


@pytest.mark.slow
def test_a_corpus_in_an_object_store_that_fails_now_and_then(
    made: Undisturbed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = str(tmp_path / "w")
    with bad_store() as store:
        store.fail_every(25)
        outcome = Program(made.recordings, Path(workspace), "--cpus=2", "--corpus=s3://corpora/c").end()
        assert outcome.returncode == 0, outcome.stderr[-3000:]
        assert store.failed >= 3
        store.fail_every(0)
        corpus = open_storage("s3://corpora/c")
        found = {path: hashlib.sha256(corpus.read(path)).hexdigest() for path in corpus.sizes("")}
        (lease,) = (path for path in found if path.startswith("lease/"))
        assert json.loads(corpus.read(lease))["free"]
        assert found == {**made.files, lease: found[lease]}
        # The workspace remembers where its corpus is.
        for verb in (["verify"], ["select"], ["report"], ["gc", "--json"]):
            assert main([*verb, "--workspace", workspace]) == 0
        said = capsys.readouterr().out
        assert "4 units" in said
        assert "all as committed" in said
        assert '"files": []' in said
        assert len(corpus.names("voices/ada/selection")) == 1
        assert (tmp_path / "w" / "corpus" / "report" / "index.html").is_file()
        again = Program(made.recordings, Path(workspace), "--cpus=2").end()
        assert again.returncode == 0, again.stderr[-3000:]
        assert "ray" not in again.stderr.lower()
