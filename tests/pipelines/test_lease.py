"""A lease in a store: one holder at a time, a dead one is found out, a living one sends others away."""

import threading
import time
from pathlib import Path

import pytest

from pipelines import lease
from pipelines.lease import held
from pipelines.storage import LocalStorage, Storage


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_S", 0.05)
    monkeypatch.setattr(lease, "SILENCE_S", 1.0)


@pytest.fixture
def corpus(tmp_path: Path) -> Storage:
    return LocalStorage(tmp_path)


def test_a_lease_that_ended_is_had_at_once_and_leaves_one_small_file(corpus: Storage) -> None:
    for _ in range(3):
        began = time.monotonic()
        with held(corpus):
            assert len(corpus.names("lease")) == 1
        assert time.monotonic() - began < 0.5
    assert corpus.names("lease") == ["00000003.json"]


def test_a_living_holder_sends_others_away(corpus: Storage) -> None:
    with held(corpus):
        with pytest.raises(ValueError, match=r"another job is at work on this corpus \(process \d+ on "), held(corpus):
            pytest.fail("two jobs at once")
        time.sleep(0.2)
        assert corpus.names("lease") == ["00000001.json"]


def test_a_job_that_waits_gets_it_when_the_other_ends(corpus: Storage) -> None:
    order = []

    def first() -> None:
        with held(corpus):
            holding.set()
            time.sleep(0.6)
            order.append("first")

    holding = threading.Event()
    thread = threading.Thread(target=first)
    thread.start()
    holding.wait()
    with held(corpus, wait_s=30):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]


def test_the_lease_of_a_dead_holder_is_taken_over(corpus: Storage) -> None:
    corpus.write("lease/00000007.json", lease._record("somebody", 3))
    began = time.monotonic()
    with held(corpus):
        assert time.monotonic() - began >= 1.0
        assert corpus.names("lease") == ["00000008.json"]


def test_of_many_that_want_it_exactly_one_has_it(corpus: Storage) -> None:
    corpus.write("lease/00000001.json", lease._record("somebody", 3))
    inside, most, refused = 0, 0, 0
    lock = threading.Lock()

    def job() -> None:
        nonlocal inside, most, refused
        try:
            with held(corpus):
                with lock:
                    inside += 1
                    most = max(most, inside)
                time.sleep(0.3)
                with lock:
                    inside -= 1
        except ValueError:
            with lock:
                refused += 1

    threads = [threading.Thread(target=job) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert refused <= 3


def test_a_holder_that_was_taken_for_dead_leaves_the_next_one_s_lease_alone(corpus: Storage) -> None:
    with held(corpus):
        corpus.write("lease/00000002.json", lease._record("another", 1))
        time.sleep(0.2)
    assert corpus.read("lease/00000002.json") == lease._record("another", 1)
