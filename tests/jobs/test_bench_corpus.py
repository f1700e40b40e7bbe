import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from jobs import bench_corpus
from jobs.bench_corpus import (
    CODECS,
    CORPUS_MEASUREMENTS,
    CorpusBench,
    RejectUnread,
    encoded,
    measure_corpus,
    simulated,
    source_of,
)
from jobs.command import DONE, add_common
from jobs.commands.bench import COMMANDS
from pipelines.engines.decoder import decode
from pipelines.rows import Rejection

SMALL = CorpusBench(seconds=20, repeats=1, recordings=1_000)


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_common(parser)
    add_arguments = COMMANDS["bench"].add_arguments
    assert add_arguments is not None
    add_arguments(parser)
    return parser.parse_args(["corpus", *arguments])


def test_every_codec_and_part_has_a_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_corpus, "CODECS", {".wav": (44_100, 2), ".opus": (48_000, 1)})
    figures = list(measure_corpus(SMALL, ["codecs"]))
    assert [figure.what for figure in figures[:6]] == [
        "digest and probe", "decode", "normalise", "slice", "shard", "all, recording to shard"
    ]  # fmt: skip
    assert [figure.shape for figure in figures[::6]] == ["wav, 44100 Hz x 2", "opus, 48000 Hz x 1"]
    for parts in (figures[:6], figures[6:]):
        *single, whole = parts
        assert whole.seconds == pytest.approx(sum(part.seconds for part in single))
        assert all(part.rate == pytest.approx(20 / part.seconds) for part in parts)


def test_the_plan_says_its_units_and_memory() -> None:
    first, again = measure_corpus(SMALL, ["plan"])
    assert first.shape.startswith("1,000 recordings, 10 units: peak + ")
    assert again.rate == pytest.approx(1_000 / again.seconds)


def test_simulated_recordings_differ_and_are_spread_over_voices() -> None:
    sources = list(simulated(1_000))
    assert len({source.digest for source in sources}) == len({source.uri for source in sources}) == 1_000
    assert len({source.voice for source in sources}) == 10
    (row,) = RejectUnread().process(sources[0], None)
    assert isinstance(row, Rejection)
    assert row.num_samples is None


@pytest.mark.parametrize("suffix", CODECS)
def test_every_codec_can_be_written_and_read_here(suffix: str, tmp_path: Path) -> None:
    speech = 0.1 * np.sin(np.arange(48_000) / 20).astype(np.float32)
    rate_hz, channels = CODECS[suffix]
    path = encoded(speech, tmp_path / f"a{suffix}", rate_hz, channels)
    decoded = decode(path)
    assert (decoded.rate_hz, decoded.channels) == (rate_hz, channels)
    assert len(decoded.wave) / rate_hz == pytest.approx(1.0, abs=0.1)
    assert source_of(path).size_bytes == path.stat().st_size


def test_wrong_settings_and_names_are_refused() -> None:
    with pytest.raises(ValueError, match="repeats"):
        CorpusBench(repeats=0)
    with pytest.raises(ValueError, match=f"there are {', '.join(CORPUS_MEASUREMENTS)}"):
        list(measure_corpus(SMALL, ["speed"]))


def test_the_command_prints_a_table_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    wanted = ("--only", "plan", "--recordings", "200")
    assert COMMANDS["bench"].run(options(*wanted)) == DONE
    assert "recordings/s" in capsys.readouterr().out
    assert COMMANDS["bench"].run(options(*wanted, "--json")) == DONE
    assert len(json.loads(capsys.readouterr().out)["figures"]) == 2


@pytest.mark.slow
def test_actors_and_the_driver_s_memory_are_measured_through_ray() -> None:
    bench = CorpusBench(seconds=10, repeats=1, units=4, recordings=1_000)
    one, two = measure_corpus(bench, ["actors"])
    assert "x one" in two.shape
    assert one.rate > 0
    memory = list(measure_corpus(bench, ["memory"]))
    assert [figure.shape.split(" ")[0] for figure in memory] == ["100", "1,000"]
