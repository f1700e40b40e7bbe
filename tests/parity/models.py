"""A folder of recorded cases to one Report per case, checkpoint file and inventory.

`KINDS` says which function evaluates which kind of case: the kind is what the JSON's `upstream` says was recorded, or
else the name of the case. A function takes the case and yields one Comparison per number. Whatever nobody evaluates (an
unknown kind, a result nobody compared, a file no one reads) is a report of its own that fails.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from tests.parity.discriminators import discriminators, losses
from tests.parity.files import checkpoint_files
from tests.parity.inventory import inventory
from tests.parity.mel import lora, semantic_to_mel
from tests.parity.optimisers import learning_rates, scaled_adam
from tests.parity.recorded import GRADIENT, Comparison, RecordedCase
from tests.parity.semantic import text_to_semantic_inference, text_to_semantic_training
from tests.parity.signal import signal
from tests.parity.speaker import speaker_encoder, speaker_fbank
from tests.parity.vocoders import bigvgan, vocoder_v4
from tests.parity.wave import semantic_to_wave

Evaluation = Callable[[RecordedCase], Iterable[Comparison]]


@dataclass(frozen=True)
class Kind:
    """One kind of case: what its `upstream` begins with, how its name begins, who evaluates it."""

    upstream: str
    name: str
    evaluate: Evaluation


KINDS = (
    Kind(r"Text2SemanticDecoder\.forward", r"s1_.*train", text_to_semantic_training),
    Kind(r"Text2SemanticDecoder\.infer", r"s1_.*infer", text_to_semantic_inference),
    Kind(r"SynthesizerTrn\b", r"s2_v(1|2|2Pro|2ProPlus)(_|$)", semantic_to_wave),
    Kind(r"SynthesizerTrnV3\b", r"s2_v[34]", semantic_to_mel),
    Kind(r"s2_train_v3_lora\b", r"lora_", lora),
    Kind(r"MultiPeriodDiscriminator\b", r"disc_", discriminators),
    Kind(r"module/losses\.py", r"losses", losses),
    Kind(r"module/mel_processing\.py", r"signal", signal),
    Kind(r"ScaledAdam\b", r"optim_", scaled_adam),
    Kind(r"WarmupCosineLRSchedule\b", r"lr_schedule", learning_rates),
    Kind(r"Generator\b", r"vocoder_", vocoder_v4),
    Kind(r"BigVGAN\b", r"bigvgan_", bigvgan),
    Kind(r"eres2net/kaldi\.py", r"sv_fbank", speaker_fbank),
    Kind(r"ERes2NetV2\b", r"sv_eres2net", speaker_encoder),
)
READ_ELSEWHERE = {"inventory", "ckpt"}
RECORDED_SUFFIXES = {".json", ".safetensors", ".ckpt", ".pth", ".pt"}
# What a case that does not fit our networks raises while it is built, loaded or run.
MISFITS = (ArithmeticError, AssertionError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)

MOST_AT_A_KINK = 3
"""Gradients of one case that may be judged in float64. More of them off in float32 are no accident of rounding."""


@dataclass(frozen=True)
class Report:
    """What came of one case or file."""

    name: str
    comparisons: list[Comparison] = field(default_factory=list)

    @property
    def wrong(self) -> list[Comparison]:
        if not self.comparisons:
            return [failure(self.name, "nothing was compared")]
        return [comparison for comparison in self.comparisons if not comparison.agrees]

    @property
    def left_out(self) -> list[Comparison]:
        return [comparison for comparison in self.comparisons if comparison.left_out]

    @property
    def closest(self) -> Comparison | None:
        """The one that uses up most of its tolerance; None if nothing has a tolerance to use up."""
        compared = [comparison for comparison in self.comparisons if not comparison.left_out]
        return max(compared, key=lambda comparison: comparison.used, default=None)


def kind_of(case: RecordedCase) -> Kind | None:
    """Who evaluates `case`; None if nobody does."""
    upstream, name = str(case.meta.get("upstream", "")), str(case.meta.get("case", case.name))
    by_upstream = (kind for kind in KINDS if re.match(kind.upstream, upstream))
    by_name = (kind for kind in KINDS if not upstream and re.match(kind.name, name))
    return next(by_upstream, None) or next(by_name, None)


def evaluate(case: RecordedCase) -> list[Comparison]:
    """Every number of `case` compared; a recorded one that nothing was compared with counts as infinitely wrong."""
    kind = kind_of(case)
    if kind is None:
        return [failure(case.name, f"nothing here evaluates {case.meta.get('upstream', 'a case of this name')!r}")]
    comparisons: list[Comparison] = []
    try:
        recorded_keys = case.meta.get("n_state_dict_keys")
        if recorded_keys is not None:
            comparisons.append(Comparison("n_state_dict_keys", abs(len(case.weights()) - recorded_keys), 0.0))
        comparisons.extend(kind.evaluate(case))
        comparisons.extend(case.compare_middles())
        if 0 < sum(map(_is_wrong_gradient, comparisons)) <= MOST_AT_A_KINK:
            comparisons = _gradients_again(kind, case, comparisons)
    except MISFITS as error:
        comparisons.append(failure("evaluation ended early", f"{type(error).__name__}: {first_line(error)}"))
    compared = {comparison.name for comparison in comparisons}
    forgotten = [name for name in case.results if name not in compared]
    forgotten += [
        f"gradients of {scalar}" for scalar in case.meta.get("grad_norms", {}) if scalar not in case.gradients_compared
    ]
    return comparisons + [failure(name, "recorded, and nothing here compares it") for name in forgotten]


def _is_wrong_gradient(comparison: Comparison) -> bool:
    return comparison.name.startswith(GRADIENT) and not comparison.agrees


def _gradients_again(kind: Kind, case: RecordedCase, comparisons: list[Comparison]) -> list[Comparison]:
    """`comparisons` with those of wrong gradients replaced by what float64 gives, where that is nearer.

    A rectifier has two slopes. Where its input is zero to within rounding, float32 takes either, and one element on the
    other side moves the norm of a small bias by more than the tolerance. In float64 the input has its true sign.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        exact = {comparison.name: comparison for comparison in kind.evaluate(case.in_double_precision())}
    finally:
        torch.set_default_dtype(before)
    return [
        replace(
            exact[comparison.name],
            note=f"in float64; in float32, where a rectifier's input is zero but for rounding, relative "
            f"{comparison.relative:.2g}",
        )
        if _is_wrong_gradient(comparison) and exact[comparison.name].used < comparison.used
        else comparison
        for comparison in comparisons
    ]


def failure(name: str, note: str) -> Comparison:
    return Comparison(name, float("inf"), 0.0, relative=float("inf"), note=note)


def first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def cases_of(folder: Path) -> list[RecordedCase]:
    """Every case of the folder, whole or half."""
    names = {path.stem for path in folder.iterdir() if path.suffix in {".json", ".safetensors"} and path.is_file()}
    return [RecordedCase(folder / name) for name in sorted(names)]


def reports(folder: Path, only: Iterable[str] = ()) -> Iterator[Report]:
    """Everything recorded in `folder`, or what `only` names: NAME, inventory/NAME, ckpt/FILE."""
    wanted = set(only)
    for case in cases_of(folder):
        if not wanted or case.name in wanted:
            yield _report_of(case)
    for path in sorted((folder / "inventory").glob("*.json")):
        if not wanted or f"inventory/{path.stem}" in wanted:
            yield Report(f"inventory/{path.stem}", list(_guarded(inventory, path)))
    yield from (report for report in _checkpoints(folder) if not wanted or report.name in wanted)
    if not wanted:
        yield from _strays(folder)


def _checkpoints(folder: Path) -> Iterator[Report]:
    try:
        for name, comparisons in checkpoint_files(folder):
            yield Report(f"ckpt/{name}", comparisons)
    except MISFITS as error:
        yield Report("ckpt", [failure("evaluation ended early", f"{type(error).__name__}: {first_line(error)}")])


def _report_of(case: RecordedCase) -> Report:
    halves = [suffix for suffix in (".json", ".safetensors") if not case.path.with_name(case.name + suffix).is_file()]
    if halves:
        return Report(case.name, [failure(case.name, f"{case.name}{halves[0]} is missing")])
    return Report(case.name, list(_guarded(evaluate, case)))


def _guarded(function: Callable[[Any], Iterable[Comparison]], subject: Any) -> Iterator[Comparison]:
    try:
        yield from function(subject)
    except MISFITS as error:
        yield failure("evaluation ended early", f"{type(error).__name__}: {first_line(error)}")


def _strays(folder: Path) -> Iterator[Report]:
    """What lies in the folder and belongs to nothing that is read here."""
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if len(inside.parts) > 1 and inside.parts[0] not in READ_ELSEWHERE and path.suffix in RECORDED_SUFFIXES:
            yield Report(str(inside), [failure(str(inside), "nothing here reads files of this folder")])
        elif len(inside.parts) == 1 and path.suffix in RECORDED_SUFFIXES - {".json", ".safetensors"}:
            yield Report(str(inside), [failure(str(inside), "checkpoint files are read from the folder ckpt")])
