"""bench: how fast this machine is."""

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING

from jobs.command import DONE, Command
from jobs.terminal import say, say_json, say_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobs.bench import Figure


def _bench(options: argparse.Namespace) -> int:
    kinds = {"corpus": _bench_corpus, "text": _bench_text, "networks": _bench_networks, "train": _bench_networks}
    return kinds[options.what](options)


def _bench_text(options: argparse.Namespace) -> int:
    from jobs.bench_text import LANGUAGES, measure_text

    bench = measure_text(tuple(options.only) or LANGUAGES)
    if options.json:
        say_json(asdict(bench), indent=1)
        return DONE
    say(f"import {bench.import_seconds:.2f} s, one thread")
    rows = [[one.language, f"{one.characters_per_second:,.0f}", f"{one.growth:.2f}"] for one in bench.speeds]
    say_table(("language", "characters/s", "ten times the text, per character"), rows)
    return DONE


def _bench_corpus(options: argparse.Namespace) -> int:
    import torch

    from jobs.bench import machine
    from jobs.bench_corpus import CorpusBench, measure_corpus

    bench = CorpusBench(repeats=options.repeats, recordings=options.recordings)
    on = machine(torch.device("cpu"))
    figures = list(measure_corpus(bench, options.only))
    if options.json:
        say_json({"machine": asdict(on), **asdict(bench), "figures": [asdict(one) for one in figures]}, indent=1)
        return DONE
    say(f"{on.name}: {on.processor}, {on.cpus} CPUs, Python {on.python}")
    say(f"recordings of {bench.seconds:g} s, speech of the demonstration voices; seconds of one core")
    say()
    _say_figures(figures)
    return DONE


def _bench_networks(options: argparse.Namespace) -> int:
    import torch

    from gsv_core.checkpoints.releases import RELEASES, Release
    from jobs.bench import Bench, machine, measure_networks
    from jobs.bench_train import measure_training

    release = options.base or Release.V2
    if release not in RELEASES:
        raise ValueError(f"unknown release {release!r}; known are {', '.join(RELEASES)}")
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    bench = Bench(spec=RELEASES[Release(release)], repeats=options.repeats, device=device, precision=options.precision)
    on = machine(device)
    measure = measure_training if options.what == "train" else measure_networks
    figures = list(measure(bench, options.only))
    if options.json:
        say_json({"machine": asdict(on), "release": release, "figures": [asdict(one) for one in figures]}, indent=1)
        return DONE
    say(f"{on.name}: {on.processor}, {on.cpus} CPUs, {on.threads} threads, on {on.device}")
    say(f"torch {on.torch}, Python {on.python}; {release}, random weights, median of {options.repeats}")
    say()
    _say_figures(figures)
    return DONE


def _say_figures(figures: "Sequence[Figure]") -> None:
    rows = [[f.what, f.shape, f"{f.seconds:.3f}", f"{f.best_seconds:.3f}", f"{f.rate:.2f}", f.unit] for f in figures]
    say_table(("what", "shape", "seconds", "best", "rate", "unit"), rows)


def _add_bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        choices=("networks", "train", "corpus", "text"),
        help="networks: inference at full size; train: steps at full size, and what a voice costs beside them; "
        "corpus: recordings to shards; text: to phonemes",
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help="networks: inference, wave-decoding; train: semantic, wave, loading, voice, adapters; "
        "corpus: plan, codecs, stages, features, actors, memory; text: a language",
    )
    parser.add_argument(
        "--recordings", type=int, default=100_000, help="corpus: simulated recordings of plan and memory [100000]"
    )
    parser.add_argument("--repeats", type=int, default=5, help="timed runs, after one that is not [5]")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="cpu or cuda [cuda where there is one]")
    parser.add_argument(
        "--precision",
        default="float32",
        choices=("float32", "bfloat16", "float16"),
        help="of text-to-semantic inference [float32]",
    )


COMMANDS = {
    "bench": Command(
        run=_bench,
        says="measure how fast this machine is",
        example="gsv bench networks --only inference --repeats 3",
        add_arguments=_add_bench,
    ),
}
