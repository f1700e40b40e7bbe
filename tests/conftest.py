"""What several tests share: demonstration recordings, made once per session."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def demo_voices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two voices spoken by eSpeak NG in several formats, with known text. Read only."""
    from jobs.demo import make_demo_voices

    return make_demo_voices(tmp_path_factory.mktemp("demo") / "recordings")
