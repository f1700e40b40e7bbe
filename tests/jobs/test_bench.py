import argparse
import json

import pytest
import torch

from gsv_core.checkpoints.releases import RELEASES, Release
from jobs.bench import MEASUREMENTS, Bench, machine, measure_networks
from jobs.command import DONE, add_common
from jobs.commands.bench import COMMANDS

NANO = Bench(spec=RELEASES[Release.NANO], repeats=2)


def _options(*arguments):
    parser = argparse.ArgumentParser()
    add_common(parser)
    COMMANDS["bench"].add_arguments(parser)
    return parser.parse_args(["networks", *arguments])


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_every_measurement_gives_rates_that_follow_from_its_times(name):
    figures = list(measure_networks(NANO, [name]))
    assert figures
    for figure in figures:
        assert 0 < figure.best_seconds <= figure.seconds
        assert figure.repeats == 2
        assert figure.unit in ("tokens/s", "steps/s", "x real time")


def test_inference_is_measured_alone_and_in_a_batch():
    one, eight = measure_networks(NANO, ["inference"])
    assert one.rate == pytest.approx(150 / one.seconds)
    assert eight.rate == pytest.approx(8 * 150 / eight.seconds)
    assert "60 phonemes, 75 + 150 tokens" in one.shape


def test_a_rate_counts_what_is_done_once_and_the_first_run_does_not_count():
    runs = []
    figure = NANO.time(lambda: runs.append(1), what="w", shape="s", amount=10, unit="tokens/s")
    assert len(runs) == 3
    assert figure.rate == pytest.approx(10 / figure.seconds)


def test_measuring_leaves_the_random_state_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    list(measure_networks(NANO, ["wave-decoding"]))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_machine_is_named():
    on = machine(torch.device("cpu"))
    assert on.threads == torch.get_num_threads()
    assert on.torch == torch.__version__
    assert on.processor


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"repeats": 0}, "repeats"),
        ({"precision": "int3"}, "int3"),
        ({"spec": RELEASES[Release.V4]}, "predict a wave"),
    ],
)
def test_settings_that_cannot_be_measured_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Bench(**settings)


def test_an_unknown_measurement_is_named():
    with pytest.raises(ValueError, match="no measurement speed; there are inference"):
        list(measure_networks(NANO, ["speed"]))


def test_the_command_prints_a_table_or_json(capsys):
    wanted = ("--base", "nano", "--only", "inference", "--repeats", "1", "--device", "cpu")
    run = COMMANDS["bench"].run
    assert run(_options(*wanted)) == DONE
    shown = capsys.readouterr().out
    assert f"torch {torch.__version__}" in shown
    assert "tokens/s" in shown
    assert run(_options(*wanted, "--json")) == DONE
    record = json.loads(capsys.readouterr().out)
    assert record["release"] == "nano"
    assert len(record["figures"]) == 2
    assert record["machine"]["threads"] == torch.get_num_threads()


def test_the_command_knows_the_releases():
    with pytest.raises(ValueError, match="unknown release 'v9'"):
        COMMANDS["bench"].run(_options("--base", "v9"))
