import json

import pytest
import torch

from gsv_core.checkpoints.releases import RELEASES, Release
from gsv_core.training.precision import Precision
from jobs.bench import Bench
from jobs.bench_train import PHONEMES, TOKENS, measure_training, precisions_of
from jobs.command import DONE
from jobs.commands.bench import COMMANDS
from tests.jobs.test_bench import _options

NANO = Bench(spec=RELEASES[Release.NANO], repeats=1)


def test_the_batch_is_the_one_that_upstream_was_measured_with():
    assert (len(PHONEMES), sum(PHONEMES), min(PHONEMES), max(PHONEMES)) == (8, 480, 30, 120)
    assert (len(TOKENS), sum(TOKENS), min(TOKENS), max(TOKENS)) == (8, 1468, 50, 250)


def test_a_semantic_step_is_measured_with_and_without_its_optimiser():
    *measured, making = measure_training(NANO, ["semantic"])
    learning, step = measured[-2:]
    precisions = precisions_of(NANO.device)
    assert [figure.shape.rpartition(" ")[2] for figure in measured[::2]] == precisions
    assert learning.rate == pytest.approx(1468 / learning.seconds)
    assert step.rate == pytest.approx(1468 / step.seconds)
    assert making.rate == pytest.approx(100 * making.seconds / (making.seconds + step.seconds))
    assert making.rate < 50


def test_a_wave_step_is_measured():
    *steps, making = measure_training(NANO, ["wave"])
    step = steps[-1]
    assert len(steps) == len(precisions_of(NANO.device))
    assert "segments of 20,480 samples" in step.shape
    assert step.rate == pytest.approx(1 / step.seconds)
    assert 0 < making.rate < 50


def test_bfloat16_is_measured_on_a_cpu_that_multiplies_it(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert precisions_of(torch.device("cpu")) == [Precision.FLOAT32]
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert precisions_of(torch.device("cpu")) == [Precision.FLOAT32, Precision.BFLOAT16]


def test_shards_are_read_from_disk():
    (reading,) = measure_training(NANO, ["loading"])
    assert reading.rate == pytest.approx(100 / reading.seconds)


@pytest.mark.slow
def test_a_small_voice_is_trained_from_its_shards():
    rest, steps = measure_training(NANO, ["voice"])
    assert "28 steps" in rest.shape
    assert rest.seconds > 0
    assert steps.seconds > 0


@pytest.mark.slow
def test_adapters_of_several_voices_are_compared():
    assert len(list(measure_training(NANO, ["adapters"]))) >= 2


def test_an_unknown_measurement_is_named():
    with pytest.raises(ValueError, match="no measurement speed; there are semantic"):
        list(measure_training(NANO, ["speed"]))


def test_the_command_prints_json(capsys):
    options = _options("--base", "nano", "--only", "loading", "--repeats", "1", "--device", "cpu", "--json")
    options.what = "train"
    assert COMMANDS["bench"].run(options) == DONE
    record = json.loads(capsys.readouterr().out)
    assert record["machine"]["processor"]
    assert [figure["what"] for figure in record["figures"]] == ["reading a voice's shards, once"]
