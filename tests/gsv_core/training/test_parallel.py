"""Sums over real processes that talk through gloo, and two ranks that train what one process would."""

import pytest
import torch
import torch.distributed
import torch.multiprocessing

from gsv_core.checkpoints.base import load_base
from gsv_core.training import parallel
from gsv_core.training.loop import fit
from gsv_core.training.parallel import TorchReducer, part_of
from gsv_core.training.schedules import PhasePlan
from gsv_core.training.semantic_trainer import SemanticTrainer
from gsv_core.training.wave_trainer import WaveTrainer
from tests.gsv_core.made_items import made_items

PLAN = PhasePlan(
    steps=4, batch_size=5, learning_rate=1e-3, warm_up_steps=1, save_every=2, evaluate_every=2, longest_frames=48
)
TRAINERS = {"semantic": SemanticTrainer, "wave": WaveTrainer}
# Over four steps of AdamW, whose first steps make much of the smallest difference between gradients.
TOLERANCE = 5e-4


def _rank(rank, world, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    reducer = TorchReducer()
    results = {phase: train(reducer, phase) for phase in TRAINERS} | {"gradients": add_gradients(reducer)}
    torch.save(results, f"{folder}/result-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What two processes made of everything below, side by side."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(_rank, (2, str(folder)), nprocs=2)
    return [torch.load(folder / f"result-{rank}.pt", weights_only=False) for rank in range(2)]


def add_gradients(reducer):
    parallel._BUCKET_ELEMENTS = 5  # several buckets, one of them beyond the bound by itself
    shapes = [(2, 3), (4,), (1,), (2,), (3,)]
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
    for number, parameter in enumerate(parameters[:3]):
        parameter.grad = torch.full(parameter.shape, float(10**reducer.rank * (number + 1)))
    if reducer.rank == 1:
        parameters[3].grad = torch.ones(2)  # the other rank has none
    reducer.reduce(parameters)
    return [parameter.grad for parameter in parameters], reducer.total([1.0, float(reducer.rank)])


def test_gradients_and_numbers_are_summed_over_ranks(ranks):
    for gradients, totals in (rank["gradients"] for rank in ranks):
        expected = [torch.full((2, 3), 11.0), torch.full((4,), 22.0), torch.full((1,), 33.0), torch.ones(2)]
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(gradients, expected))
        assert gradients[4] is None  # AdamW would decay what nobody trains
        assert totals == [2.0, 1.0]


def train(reducer, phase):
    base = load_base("nano")
    items = made_items(base)
    trainer = TRAINERS[phase](base, PLAN, voice="anna", reducer=reducer)
    saves = []
    result = fit(trainer, items[1:], items[:1], PLAN, on_save=saves.append)
    return result.records, [save.step for save in saves], trainer.weights()


@pytest.mark.parametrize("phase", sorted(TRAINERS))
def test_two_ranks_have_the_curve_of_one_process(ranks, phase):
    alone, saved, _ = train(None, phase)
    (first, first_saved, first_weights), (second, second_saved, second_weights) = (rank[phase] for rank in ranks)
    assert first == second
    assert all(torch.equal(tensor, second_weights[name]) for name, tensor in first_weights.items())
    assert (first_saved, second_saved) == (saved, [])  # rank 0 saves
    assert [(record.step, record.kind) for record in first] == [(record.step, record.kind) for record in alone]
    for ours, theirs in zip(first, alone):
        losses = {name: value for name, value in theirs.metrics.items() if name != "accuracy"}
        assert {name: ours.metrics[name] for name in losses} == pytest.approx(losses, rel=TOLERANCE)


def test_a_batch_is_dealt_out_like_cards():
    class Rank:
        world = 3
        rank = 1

    assert part_of([1, 2, 3, 4, 5, 6, 7], Rank) == [2, 5]
    assert part_of([1], Rank) == []
    assert part_of([1, 2], None) == [1, 2]
