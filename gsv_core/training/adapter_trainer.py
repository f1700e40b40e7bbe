"""The ordinary trainers of several voices, their gradients computed together over one frozen base.

A voice keeps a trainer of its own: its batches, draws, losses, clipping, rate, AdamW state, skipped steps, checkpoints
and weights are those of `SemanticTrainer` and `MelTrainer`. What is shared is the middle of a step: when all voices of
a pack have brought a part of their batch, one pass of the bank (`networks.adapter_bank`) computes the loss of each and
one backward pass the gradients of all. A voice's rows depend on no other's, so that its update is what it is alone, up
to the order of floating-point sums: products of other sizes, and other padding. What a voice trains is one vector here,
so that its norm and its update are one operation each. Which voices sit together follows from the order in which they
join and end, never from time.

A joint step that fails harms nobody who is not to blame: each of its voices makes it alone, and only those that fail
there end. Where memory was short this goes on for as long as it is. What fails jointly again and again for another
reason, and never alone, is a mistake in here, and ends its voices instead of making them slow.
"""

import logging
import math
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from gsv_core.checkpoints.base import BaseModel
from gsv_core.networks.adapter_bank import AdapterBank, Seats, Share
from gsv_core.networks.dropout import clip_keys, column_keys, follow_clips
from gsv_core.networks.flow_matching import FlowDraws
from gsv_core.networks.frozen_head import frozen_cross_entropies
from gsv_core.networks.text_to_semantic import TextToSemantic
from gsv_core.training.batches import MelBatch, SemanticBatch, TrainingItem
from gsv_core.training.draws import stable_seed
from gsv_core.training.mel_trainer import MelTrainer
from gsv_core.training.memory import is_shortage
from gsv_core.training.precision import autocast
from gsv_core.training.schedules import PhasePlan, Schedule, Trains
from gsv_core.training.semantic_trainer import SemanticTrainer, StepSums
from gsv_core.training.updates import parts_of, set_rates

Batch = TypeVar("Batch", SemanticBatch, MelBatch)
Value = TypeVar("Value")

_MOST_UNEXPLAINED = 3
"""Joint steps in a row that fail though each of their voices can make them alone."""

logger = logging.getLogger(__name__)


def packable(plan: PhasePlan) -> bool:
    """Whether voices with this plan can share a batch: low-rank adapters, each step a pass over the batch."""
    return (
        plan.trains is Trains.LOW_RANK
        and plan.steps > 0
        and plan.schedule is not Schedule.UPSTREAM_SEMANTIC
        and not plan.preference
    )


class Pack:
    """Voices that train in step, each in a thread of its own; all that computes runs in one further thread.

    A voice has a `Seat`. A joint step begins when every voice that sits and trains adapters has brought its part.
    """

    def __init__(self, base: BaseModel, device: torch.device | str = "cpu") -> None:
        self.base = base
        self.device = torch.device(device)
        # One thread: torch's own random state is one, and CPU kernels keep a pool of threads per caller.
        self._engine = ThreadPoolExecutor(1, thread_name_prefix="pack")
        self._turn = threading.Condition()
        self._seats: list[Seat] = []
        self._banks: dict[str, _Bank] = {}
        self._unexplained: Counter[Any] = Counter()
        """By kind of part: joint steps in a row that failed, though memory was there and no voice failed alone."""
        self.joint_steps = 0
        """Passes of a bank over the parts of one voice or more."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._engine.shutdown()

    def seat(self) -> "Seat":
        """A place for one voice after another. From now on the others wait for whoever will sit there."""
        with self._turn:
            self._seats.append(Seat(self))
            return self._seats[-1]

    def compute(self, work: Callable[[], Value]) -> Value:
        """`work` done in the thread that computes."""
        return self._engine.submit(work).result()

    def _bank(self, trainer: "SemanticTrainer | MelTrainer") -> "_Bank":
        if trainer.phase not in self._banks:
            self._banks[trainer.phase] = (_SemanticBank if trainer.phase == "semantic" else _MelBank)(self)
        return self._banks[trainer.phase]

    def _learn_if_all_are_here(self) -> None:
        """Called with the lock held."""
        waited_for = [seat for seat in self._seats if seat.takes_part]
        if waited_for and all(seat.brought is not None for seat in waited_for):
            parts = [seat.brought for seat in waited_for if seat.brought is not None]
            joint = self._engine.submit(self._learn, sorted(parts, key=lambda part: part.trainer.voice))
            for seat in waited_for:
                seat.brought = None
            joint.add_done_callback(partial(_tell, parts))

    def _learn(self, parts: "Sequence[_Part]") -> None:
        """One joint step, in the thread that computes: the parts that can share a pass do, and complete steps end."""
        groups: dict[Any, list[_Part]] = {}
        for part in parts:
            groups.setdefault(part.kind, []).append(part)
        for kind, group in groups.items():
            self.joint_steps += 1
            try:
                _add_gradients(group)
                del self._unexplained[kind]
            except (RuntimeError, ValueError, IndexError) as error:
                # Of several voices nobody knows whose fault it is: each will have to learn its part by itself.
                logger.warning("a joint step of %d voices failed; they make it alone", len(group), exc_info=True)
                self._unexplained[kind] += not is_shortage(error)
                if self._unexplained[kind] == _MOST_UNEXPLAINED:
                    del self._unexplained[kind]
                    for part in group:
                        part.error = RuntimeError(f"joint steps fail and those of each voice alone do not: {error}")
        _update([part for part in parts if part.learned and part.is_last])


class Seat:
    """One voice's place in a pack; voices may sit there one after the other."""

    def __init__(self, pack: Pack) -> None:
        self._pack = pack
        self.takes_part = True
        """The others wait for this seat."""
        self.brought: _Part | None = None
        self._trainer: _PackedSemanticTrainer | _PackedMelTrainer | None = None

    def semantic_trainer(self, plan: PhasePlan, *, voice: str) -> SemanticTrainer:
        """The trainer of a voice's GPT phase, which it has to be able to train in a pack."""
        return self._sit(partial(_PackedSemanticTrainer, self, plan, voice=voice))

    def mel_trainer(self, plan: PhasePlan, *, voice: str) -> MelTrainer:
        """The same of the flow-matching phase (v3, v4)."""
        return self._sit(partial(_PackedMelTrainer, self, plan, voice=voice))

    def apart(self, make: Callable[[], Value]) -> Value:
        """A trainer that shares no batch, made and used in the thread that computes; the others do not wait for it."""
        self.clear()
        self.stand()
        trainer = self._pack.compute(make)
        for name in ("step", "evaluate", "speak"):
            setattr(trainer, name, partial(self._compute, getattr(trainer, name)))
        return trainer

    def clear(self) -> None:
        """The voice that sat here is done, its adapters leave the bank. Another may come; the others wait for it."""
        with self._pack._turn:
            if self._trainer is not None:
                self._pack._bank(self._trainer).adapters.leave(self._trainer.voice)
            self._trainer = None

    def stand(self) -> None:
        """Nobody will sit here for now: the others wait no longer."""
        with self._pack._turn:
            self.takes_part = False
            self._pack._learn_if_all_are_here()

    def _sit(self, make: Callable[[], Any]) -> Any:
        self.clear()
        with self._pack._turn:
            self.takes_part = True
        trainer = self._pack.compute(make)
        with self._pack._turn:
            trainer.sit(self._pack._bank(trainer).adapters)
            self._trainer = trainer
        return trainer

    def _compute(self, work: Callable[..., Value], *given: Any) -> Value:
        return self._pack.compute(lambda: work(*given))

    def _learn(self, part: "_Part") -> bool:
        """Bring a part and wait for the joint step. False: it gave no gradients."""
        with self._pack._turn:
            self.brought = part
            self._pack._learn_if_all_are_here()
        part.done.result()
        return part.learned


class _Bank(Protocol):
    """The shared network of one phase."""

    adapters: AdapterBank

    def loss(self, parts: "Sequence[Any]") -> Tensor:
        """The sum of what each part adds to the loss of its voice's step, times its voice's scale; what a voice has to
        note of it is in its part."""
        ...


@dataclass(kw_only=True)
class _Part:
    """A part of one voice's batch on its way through a joint step."""

    trainer: "_PackedSemanticTrainer | _PackedMelTrainer"
    bank: _Bank
    kind: Any
    """Parts of one kind share a pass."""
    batch: Any
    keys: Tensor
    """Of dropout, (B,)"""
    given: Any
    is_last: bool
    """Of its voice's step, which then ends."""
    done: Future[None] = field(default_factory=Future)
    """The joint step has been made."""
    learned: bool = False
    """It gave gradients."""
    error: Exception | None = None
    """What ends its voice."""

    @property
    def rows(self) -> int:
        return len(self.keys)


def _tell(parts: Sequence[_Part], joint: Future[None]) -> None:
    """Let the voices go on."""
    for part in parts:
        if (error := joint.exception() or part.error) is None:
            part.done.set_result(None)
        else:
            part.done.set_exception(error)


def _add_gradients(parts: Sequence[_Part]) -> None:
    """One forward and one backward pass; nothing has changed where it raises."""
    bank = parts[0].bank
    gradients = bank.adapters.gradients(bank.loss(parts))
    for part, gradient in zip(parts, gradients, strict=True):
        part.trainer.own.add(gradient)
        part.learned = True


def _update(parts: Sequence[_Part]) -> None:
    """Make the steps whose gradients are complete, each voice its own."""
    found = []
    for trainer in (part.trainer for part in parts):
        trainer.scale.down([trainer.own.vector])
        assert trainer.own.vector.grad is not None
        found.append(trainer.own.vector.grad)
    if found:
        norms = torch.stack(torch._foreach_norm(found)).tolist()
        for part, norm in zip(parts, norms, strict=True):
            try:
                part.trainer.own.step(norm, part.trainer.gradient_clip)
            except Exception as error:  # handed to the voice: the others make their steps
                logger.exception("voice %s failed in its update", part.trainer.voice)
                part.error = error


class _VectorAdamW(torch.optim.AdamW):
    """AdamW over one vector, which saves and reads what it would with a tensor for each of the `parts`, views of the
    vector: a voice may begin in a pack and go on alone, and the other way round."""

    def __init__(self, vector: nn.Parameter, parts: Sequence[Tensor], **given: Any) -> None:
        self._vector, self._parts = vector, parts
        super().__init__([{"params": [vector], "share": 1.0}], **given)

    def state_dict(self) -> dict[str, Any]:
        saved = super().state_dict()
        (group,) = saved["param_groups"]
        states = [
            {name: self._part(value, part).clone() for name, value in state.items()}
            for state in saved["state"].values()
            for part in self._parts
        ]
        return {
            "state": dict(enumerate(states)),
            "param_groups": [group | {"params": list(range(len(self._parts)))}],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As the ordinary one.

        Raises:
            ValueError: it is of other parts, or they have made different numbers of steps.
        """
        (group,), states = state_dict["param_groups"], list(state_dict["state"].values())
        if len(group["params"]) != len(self._parts) or len(states) not in (0, len(self._parts)):
            raise ValueError(f"an optimiser of {len(states)} tensors, not of {len(self._parts)}")
        if len({float(state["step"]) for state in states}) > 1:
            raise ValueError("an optimiser whose tensors have made different numbers of steps")
        joined: dict[str, Tensor] = {}
        for name, first in states[0].items() if states else ():
            joined[name] = torch.zeros_like(self._vector) if first.ndim else first.clone()
            for part, state in zip(self._parts, states, strict=True):
                self._part(joined[name], part).copy_(state[name])
        super().load_state_dict({"state": {0: joined} if joined else {}, "param_groups": [group | {"params": [0]}]})

    @staticmethod
    def _part(values: Tensor, part: Tensor) -> Tensor:
        """Of something as long as the vector what is `part`'s; a single number is everyone's."""
        start = part.storage_offset()
        return values[start : start + part.numel()].view_as(part) if values.ndim else values


class _Own:
    """What a voice trains, as one vector of T numbers, and its optimiser."""

    def __init__(self, vector: Tensor, parts: Sequence[Tensor], like: torch.optim.Optimizer) -> None:
        self.vector = nn.Parameter(vector)
        given = {name: like.defaults[name] for name in ("lr", "betas", "eps", "weight_decay", "fused")}
        self.optimiser = _VectorAdamW(self.vector, parts, **given)
        self.norm = 0.0
        """Of the gradients of the newest step."""

    @property
    def finite(self) -> bool:
        return math.isfinite(self.norm)

    def add(self, gradient: Tensor) -> None:
        self.vector.grad = gradient if self.vector.grad is None else self.vector.grad + gradient

    def step(self, norm: float, clip: float) -> None:
        """End a step whose gradients are complete and have this norm."""
        self.norm = norm
        gradient, self.vector.grad = self.vector.grad, None
        assert gradient is not None
        if self.finite:
            # As `clip_grad_norm_` does.
            self.vector.grad = gradient if norm + 1e-6 <= clip else gradient * (clip / (norm + 1e-6))
            self.optimiser.step()
            self.vector.grad = None


class _SemanticBank:
    """GPT of the base, with the adapters of all voices."""

    def __init__(self, pack: Pack) -> None:
        self.adapters = AdapterBank(pack.base.text_to_semantic, pack.device)
        self._device = pack.device
        self._dropout = follow_clips(self.adapters.network)

    def loss(self, parts: Sequence[_Part]) -> Tensor:
        batch = _joined([part.batch for part in parts]).to(self._device)
        lengths = batch.phoneme_lengths + batch.token_lengths
        columns, targets = _of_parts(parts, lengths), _of_parts(parts, batch.token_lengths + 1)
        self.adapters.seats = self.adapters.seats_of(_shares(parts, columns))
        self._dropout.clips, self._dropout.passes = _keys(parts), 0
        self._dropout.columns = column_keys(self._dropout.clips, lengths)
        network = self.adapters.network
        assert isinstance(network, TextToSemantic)
        _training(network)
        with autocast(self._device, parts[0].trainer.precision):
            hidden, wanted = network.predicting(
                batch.phoneme_ids,
                batch.phoneme_lengths,
                batch.tokens,
                batch.token_lengths,
                batch.text_vectors,
                recompute=any(part.trainer.plan.checkpoint_layers for part in parts),
            )
            losses, hits = frozen_cross_entropies(hidden, network.ar_predict_layer.weight, wanted)
        found = torch.stack([losses.detach(), hits & (wanted != network.config.end_token)])
        sums = torch.stack([own.sum(dim=1) for own in found.split(targets, dim=1)]).tolist()
        for part, (loss, hit) in zip(parts, sums, strict=True):
            part.given.loss, part.given.hits = loss, hit
        return losses @ _per_row([part.trainer.scale.value / part.given.targets for part in parts], targets, losses)


class _Rows(NamedTuple):
    """Rows of a batch: whose they are, and what their dropout follows."""

    seats: Seats
    keys: Tensor


class _MelBank:
    """The flow-matching network of the base, with the adapters and condition encoders of all voices."""

    def __init__(self, pack: Pack) -> None:
        untrained, _ = pack.base.mel_networks()
        self.adapters = AdapterBank(untrained, pack.device)
        self._device = pack.device
        self._dropout = follow_clips(self.adapters.network)
        self.adapters.network.get_submodule("cfm.estimator").register_forward_pre_hook(self._begin_pass)
        self._all = self._some = _Rows(Seats((), ()), torch.zeros(0))

    def _begin_pass(self, *_: object) -> None:
        """Where a shortcut leads is asked in two passes without gradients, for the voices that train one alone."""
        learns = torch.is_grad_enabled()
        rows = self._all if learns else self._some
        self.adapters.seats, self._dropout.clips = rows.seats, rows.keys
        self._dropout.passes = 0 if learns else self._dropout.passes + 1

    def _rows(self, parts: Sequence[_Part]) -> "_Rows":
        return _Rows(self.adapters.seats_of(_shares(parts, [0] * len(parts))), _keys(parts))

    def loss(self, parts: Sequence[_Part]) -> Tensor:
        batch = _joined([part.batch for part in parts]).to(self._device)
        draws = _joined_draws([part.given.draws for part in parts]).to(self._device)
        references = [
            part.batch.spectrogram if part.given.reference is None else part.given.reference for part in parts
        ]
        reference = None
        if any(part.given.reference is not None for part in parts):
            reference = torch.cat(_padded([one.to(self._device) for one in references], batch.spectrogram.shape))
        shortcuts = [part for part in parts if part.given.draws.halvings is not None]
        self._all = self._rows(parts)
        self._some = self._rows(shortcuts) if 0 < len(shortcuts) < len(parts) else self._all
        self.adapters.seats, self._dropout.clips, self._dropout.passes = self._all.seats, self._all.keys, 0
        network = _training(self.adapters.network)
        with autocast(self._device, parts[0].trainer.precision):
            losses = network(
                batch.content,
                batch.spectrogram,
                batch.lengths,
                batch.mel,
                batch.mel_lengths,
                batch.phoneme_ids,
                batch.phoneme_lengths,
                draws=draws,
                reference=reference,
                recompute=any(part.trainer.plan.checkpoint_layers for part in parts),
            )
        rows = [part.rows for part in parts]
        for part, own in zip(parts, losses.detach().split(rows), strict=True):
            part.given.loss = own.sum().item() / part.given.clips
        return losses @ _per_row([part.trainer.scale.value / part.given.clips for part in parts], rows, losses)


@dataclass
class _SemanticGiven:
    """What a part of GPT's batch counts against, and what came out of it."""

    targets: float
    loss: float = 0.0
    hits: float = 0.0


@dataclass
class _MelGiven:
    """What a part of the flow's batch counts against, its draws, and what came out of it."""

    clips: float
    draws: FlowDraws
    reference: Tensor | None
    loss: float = 0.0


class _PackedSemanticTrainer(SemanticTrainer):
    """`SemanticTrainer` whose gradients come from a joint step."""

    own: _Own

    def __init__(self, seat: Seat, plan: PhasePlan, *, voice: str) -> None:
        assert packable(plan), f"the GPT plan of {voice} cannot share a batch"
        super().__init__(seat._pack.base, plan, voice=voice, device=seat._pack.device)
        self._seat = seat
        self.gradient_clip = plan.gradient_clip

    def sit(self, bank: AdapterBank) -> None:
        """Join the voices of `bank`."""
        assert self.optimiser is not None
        self.own = _Own(bank.join(self.voice, self.network), self.parameters, self.optimiser)
        self.optimiser = self.own.optimiser

    def step(self, batch: SemanticBatch | Sequence[SemanticBatch]) -> dict[str, float]:
        assert self.optimiser is not None
        parts = parts_of(batch)
        rate = set_rates(self.optimiser, self.updates, self.plan)
        sums = StepSums(float(sum(map(self._targets_of, parts))), float(sum(len(part.clip_ids) for part in parts)))
        for number, part in enumerate(parts):
            self._bring(part, number, sums, is_last=number == len(parts) - 1)
        numbers = self._numbers(sums)
        searching = self.scale.settle(finite=self.own.finite, loss=sum(numbers.values()))
        self.skipped += not self.own.finite and not searching
        self.updates += 1
        self.steps_done += 1
        return numbers | self.scale.numbers() | {"gradient_norm": self.own.norm, "learning_rate": rate}

    def _bring(self, part: SemanticBatch, number: int, sums: StepSums, *, is_last: bool) -> None:
        own = (self.plan.seed, self.voice, self.phase, self.steps_done)
        given = _SemanticGiven(sums.targets)
        brought = _Part(
            trainer=self,
            bank=self._seat._pack._bank(self),
            kind=(self.phase, self.plan.rank, self.precision),
            batch=part,
            keys=clip_keys([stable_seed(*own, clip, "dropout") for clip in part.clip_ids], self.device),
            given=given,
            is_last=is_last,
        )
        if not self._seat._learn(brought):
            self._seat._compute(_learn_alone, brought, lambda: self._learn(part, number, sums))
            return
        sums.loss += given.loss
        sums.hits += given.hits
        sums.tokens += int(part.token_lengths.sum())

    def evaluate(self, items: Sequence[TrainingItem]) -> dict[str, float]:
        return self._seat._compute(super().evaluate, items)


class _PackedMelTrainer(MelTrainer):
    """`MelTrainer` whose gradients come from a joint step."""

    own: _Own
    gradient_clip = math.inf

    def __init__(self, seat: Seat, plan: PhasePlan, *, voice: str) -> None:
        assert packable(plan), f"the SoVITS plan of {voice} cannot share a batch"
        super().__init__(seat._pack.base, plan, voice=voice, device=seat._pack.device)
        self._seat = seat

    def sit(self, bank: AdapterBank) -> None:
        """Join the voices of `bank`."""
        assert self.optimiser is not None
        self.own = _Own(bank.join(self.voice, self.network), list(self.trained.values()), self.optimiser)
        self.optimiser = self.own.optimiser

    def step(self, batch: MelBatch | Sequence[MelBatch]) -> dict[str, float]:
        assert self.optimiser is not None
        parts = parts_of(batch)
        rate = set_rates(self.optimiser, self.steps_done, self.plan)
        clips = float(sum(len(part.clip_ids) for part in parts))
        loss = sum(self._bring(part, clips, is_last=number == len(parts) - 1) for number, part in enumerate(parts))
        searching = self.scale.settle(finite=self.own.finite, loss=loss)
        self.skipped += not self.own.finite and not searching
        self.steps_done += 1
        return {"flow": loss, **self.scale.numbers(), "gradient_norm": self.own.norm, "learning_rate": rate}

    def _bring(self, part: MelBatch, clips: float, *, is_last: bool) -> float:
        own = (self.plan.seed, self.voice, self.phase, self.steps_done)
        given = _MelGiven(clips, self._draws(part), self._reference(part))
        brought = _Part(
            trainer=self,
            bank=self._seat._pack._bank(self),
            kind=(self.phase, self.plan.rank, self.precision),
            batch=part,
            keys=clip_keys([stable_seed(*own, clip, "dropout") for clip in part.clip_ids], self.device),
            given=given,
            is_last=is_last,
        )
        if not self._seat._learn(brought):
            return self._seat._compute(_learn_alone, brought, lambda: self._learn(part, clips))
        return given.loss

    def evaluate(self, items: Sequence[TrainingItem]) -> dict[str, float]:
        return self._seat._compute(super().evaluate, items)

    def speak(self, items: Sequence[TrainingItem]) -> dict[str, float]:
        return self._seat._compute(super().speak, items)


def _learn_alone(part: _Part, learn: Callable[[], Value]) -> Value:
    """A part that gave nothing in a joint step, as the ordinary trainer learns it."""
    trainer = part.trainer
    trainer.network.train()
    try:
        found = learn()
        trainer.own.add(part.bank.adapters.gradients_of(trainer.voice))
        if part.is_last:
            _update([part])
        if part.error is not None:
            raise part.error
    except Exception:  # now it is known whose fault it was
        del trainer._seat._pack._unexplained[part.kind]
        raise
    finally:
        trainer.network.zero_grad(set_to_none=True)
    return found


def _of_parts(parts: Sequence[_Part], counts: Tensor) -> list[int]:
    """What the rows of each part add up to."""
    values = iter(counts.tolist())
    return [sum(next(values) for _ in range(part.rows)) for part in parts]


def _per_row(values: Sequence[float], counts: Sequence[int], like: Tensor) -> Tensor:
    """Each of `values` so many times, (N,)."""
    return torch.tensor(values).repeat_interleave(torch.tensor(counts)).to(like)


def _shares(parts: Sequence[_Part], columns: Sequence[int]) -> list[Share]:
    return [
        Share(voice=part.trainer.voice, rows=part.rows, columns=count)
        for part, count in zip(parts, columns, strict=True)
    ]


def _training(network: nn.Module) -> nn.Module:
    return network if network.training else network.train()


def _keys(parts: Sequence[_Part]) -> Tensor:
    return torch.cat([part.keys for part in parts])


def _joined(batches: Sequence[Batch]) -> Batch:
    """The rows of all, padded to the longest."""
    if len(batches) == 1:
        return batches[0]
    found: dict[str, Any] = {"clip_ids": tuple(clip for batch in batches for clip in batch.clip_ids)}
    for entry in fields(batches[0]):
        values = [getattr(batch, entry.name) for batch in batches]
        present = [value for value in values if isinstance(value, Tensor)]
        if entry.name == "clip_ids":
            continue
        if not present:
            found[entry.name] = None
            continue
        shapes = [value.shape[1:] for value in present]
        widest: list[int] = [max(sizes) for sizes in zip(*shapes, strict=True)]
        # Text vectors: a clip without any has zeros.
        filled = [
            present[0].new_zeros(len(batch.clip_ids), *widest) if value is None else value
            for batch, value in zip(batches, values, strict=True)
        ]
        found[entry.name] = torch.cat(_padded(filled, (0, *widest)))
    return replace(batches[0], **found)


def _joined_draws(draws: Sequence[FlowDraws]) -> FlowDraws:
    longest = max(own.noise.shape[2] for own in draws)
    halvings = [
        torch.zeros_like(own.time, dtype=torch.int64) if own.halvings is None else own.halvings for own in draws
    ]
    return FlowDraws(
        time=torch.cat([own.time for own in draws]),
        noise=torch.cat([pad(own.noise, (0, longest - own.noise.shape[2])) for own in draws]),
        prompt_lengths=torch.cat([own.prompt_lengths for own in draws]),
        halvings=torch.cat(halvings) if any(own.halvings is not None for own in draws) else None,
    )


def _padded(tensors: Sequence[Tensor], shape: Sequence[int]) -> list[Tensor]:
    """Each with zeros behind, as wide as `shape` in all axes but the first."""
    padded = []
    for tensor in tensors:
        more = [
            amount for size, own in zip(shape[:0:-1], tensor.shape[:0:-1], strict=True) for amount in (0, size - own)
        ]
        padded.append(pad(tensor, more) if any(more) else tensor)
    return padded
