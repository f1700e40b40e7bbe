"""A registered version outside of this project: served over HTTP, and loaded where only its requirements are."""

import base64
import io
import os
import signal
import subprocess
import sys
import time
import wave
from pathlib import Path

import pytest
import requests

from jobs.config import JobConfig
from jobs.promote import promote
from jobs.register import register_voice
from jobs.tracking import Tracker
from tests.jobs.run_fixture import write_nano_run
from tests.jobs.stores import free_port

pytestmark = pytest.mark.slow

SPEAK = """
import sys, mlflow, pandas
voice = mlflow.pyfunc.load_model("models:/gsv-alice@champion")
spoken = voice.predict(pandas.DataFrame({"text": ["Good morning."], "language": ["en"]}))
open(sys.argv[1], "wb").write(spoken["audio"][0])
print(sys.modules["gsv_core"].__file__)
"""


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    """A store in which `alice` has a champion, that went through the whole gate."""
    root = tmp_path_factory.mktemp("serving")
    tracker = Tracker(f"sqlite:///{root}/mlflow.db", "corpus")
    register_voice(tracker, write_nano_run(root / "corpus"))
    verdict = promote(tracker.registry, "alice", JobConfig())
    assert verdict.moved == ("champion-nano", "champion")
    assert verdict.trial is not None
    return tracker


def environment_of(tracker: Tracker) -> dict[str, str]:
    # MLflow starts uvicorn by its bare name.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "MLFLOW_TRACKING_URI": tracker.store.uri, "MLFLOW_DISABLE_TELEMETRY": "true"}


def seconds_of(audio: bytes) -> float:
    with wave.open(io.BytesIO(audio)) as file:
        assert any(file.readframes(file.getnframes()))
        return file.getnframes() / file.getframerate()


def test_mlflow_serves_the_champion_and_explains_what_it_refuses(tracker: Tracker, tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/gsv-alice@champion"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            command, env=environment_of(tracker), stdout=log, stderr=log, cwd=tmp_path, start_new_session=True
        )
    uri = f"http://127.0.0.1:{port}"
    try:
        give_up = time.monotonic() + 180
        while True:
            assert server.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < give_up, (tmp_path / "log").read_text()
            try:
                if requests.get(f"{uri}/ping", timeout=2).ok:
                    break
            except (requests.ConnectionError, requests.Timeout):
                time.sleep(0.5)

        def ask(*rows: list[object], columns: tuple[str, ...] = ("text", "language")) -> requests.Response:
            table = {"columns": list(columns), "data": list(rows)}
            return requests.post(f"{uri}/invocations", json={"dataframe_split": table}, timeout=120)

        answer = ask(["Good morning.", "en"], ["The quiet river.", "en"])
        assert answer.status_code == 200, answer.text
        spoken = answer.json()["predictions"]
        assert [row["rate_hz"] for row in spoken] == [32_000, 32_000]
        lengths = [seconds_of(base64.b64decode(row["audio"])) for row in spoken]
        assert all(length > 0.1 for length in lengths)
        again = ask(["Good morning.", "en"]).json()["predictions"]
        assert again[0]["audio"] == spoken[0]["audio"], "the same text and seed give the same bytes"
        other = ask(["Good morning.", "en", 7], columns=("text", "language", "seed")).json()["predictions"]
        assert other[0]["audio"] != spoken[0]["audio"]
        refused = ask(["Good morning.", "klingon"])
        assert refused.status_code == 400
        assert "unknown language 'klingon'" in refused.text
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=30)


def test_the_champion_speaks_where_only_its_requirements_are(tracker: Tracker, tmp_path: Path) -> None:
    version = tracker.registry.version_of("alice", alias="champion")
    with tracker.registry.files_of(version) as files:
        requirements = files.parents[1] / "requirements.txt"
        uv = Path(sys.executable).with_name("uv")
        if not uv.exists() or not requirements.is_file():
            pytest.skip("no uv here to make an environment with")
        made = subprocess.run([uv, "venv", "--python", sys.executable, tmp_path / "venv"], capture_output=True)
        assert made.returncode == 0, made.stderr.decode()
        install = [uv, "pip", "install", "--quiet", "--requirement", requirements]
        settings = {**environment_of(tracker), "VIRTUAL_ENV": str(tmp_path / "venv")}
        done = subprocess.run(install, env=settings, capture_output=True, text=True, check=False)
    if done.returncode != 0 and "error sending request" in done.stderr.lower():
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr
    settings.pop("PYTHONPATH", None)
    speaking = subprocess.run(
        [tmp_path / "venv" / "bin" / "python", "-c", SPEAK, tmp_path / "a.wav"],
        env=settings,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert speaking.returncode == 0, speaking.stderr[-3000:]
    assert "mlartifacts" in speaking.stdout, "gsv_core comes with the version; it is not installed there"
    assert seconds_of((tmp_path / "a.wav").read_bytes()) > 0.1
