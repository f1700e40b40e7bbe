"""What several tests share: demonstration recordings, made once per session."""

from pathlib import Path

import pytest

_COSTLY = {"made", "cluster"}
"""Fixtures of `tests/jobs` that take a minute to make: the tests that ask for them share a process."""


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of a file run in one process, and so do all that ask for the made corpus."""
    for item in items:
        costly = item.path.parent.name == "jobs" and _COSTLY & set(getattr(item, "fixturenames", ()))
        item.add_marker(pytest.mark.xdist_group("the made corpus" if costly else item.path.as_posix()))


@pytest.fixture(scope="session")
def demo_voices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two voices spoken by eSpeak NG in several formats, with known text. Read only."""
    from jobs.demo import make_demo_voices

    return make_demo_voices(tmp_path_factory.mktemp("demo") / "recordings")
