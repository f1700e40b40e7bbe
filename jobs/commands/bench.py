"""bench: how fast this machine is."""

import argparse
from dataclasses import asdict

from jobs.command import DONE, Command
from jobs.terminal import say, say_json, say_table


def _bench(options: argparse.Namespace) -> int:
    import torch

    from gsv_core.checkpoints.releases import RELEASES, Release
    from jobs.bench import Bench, machine, measure_networks

    release = options.base or Release.V2
    if release not in RELEASES:
        raise ValueError(f"unknown release {release!r}; known are {', '.join(RELEASES)}")
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    bench = Bench(spec=RELEASES[Release(release)], repeats=options.repeats, device=device, precision=options.precision)
    on = machine(device)
    figures = list(measure_networks(bench, options.only))
    if options.json:
        say_json({"machine": asdict(on), "release": release, "figures": [asdict(one) for one in figures]}, indent=1)
        return DONE
    say(f"{on.name}: {on.processor}, {on.cpus} CPUs, {on.threads} threads, on {on.device}")
    say(f"torch {on.torch}, Python {on.python}; {release}, random weights, median of {options.repeats}")
    say()
    rows = [[f.what, f.shape, f"{f.seconds:.3f}", f"{f.best_seconds:.3f}", f"{f.rate:.2f}", f.unit] for f in figures]
    say_table(("what", "shape", "seconds", "best", "rate", "unit"), rows)
    return DONE


def _add_bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("networks",), help="networks: training and inference at full size")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help="inference, semantic-training, wave-training, wave-decoding",
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
