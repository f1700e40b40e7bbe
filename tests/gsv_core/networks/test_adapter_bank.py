import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from gsv_core.networks.adapter_bank import AdapterBank, Share
from gsv_core.networks.lora import add_lora

RANK = 3


class Layer(nn.Module):
    """A product with a bare matrix, a linear layer, and a part that trains whole."""

    def __init__(self):
        super().__init__()
        self.into = nn.Parameter(torch.randn(8, 6))
        self.out = nn.Linear(8, 5)
        self.tail = nn.Sequential(nn.Linear(5, 4), nn.Tanh())

    def forward(self, x):
        return self.tail(self.out(torch.relu(functional.linear(x, self.into))))


@pytest.fixture
def base():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.ModuleDict({"layer": Layer()}).requires_grad_(False)


def adapted(base, seed, *, rank=RANK, tail=True):
    """A copy of `base` with adapters that add something."""
    network = copy.deepcopy(base)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        add_lora(network, ["into", "out"], rank=rank)
        for name, parameter in network.named_parameters():
            if name.endswith("lora_B"):
                nn.init.normal_(parameter)
    network["layer"].tail.requires_grad_(tail)
    return network


def trained(network):
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


@pytest.mark.parametrize("counts", [(4, 4, 4), (5, 1, 3)])
@pytest.mark.parametrize("frames", [0, 7])
def test_each_voice_gets_what_it_gets_alone(base, counts, frames):
    bank = AdapterBank(base, torch.device("cpu"))
    networks = {f"voice{number}": adapted(base, number) for number in range(3)}
    shape = (frames, 6) if frames else (6,)
    batches = [torch.randn(count, *shape, requires_grad=True) for count in counts]
    alone = [network["layer"](batch) for network, batch in zip(networks.values(), batches, strict=True)]
    wanted = []
    for network, output, batch in zip(networks.values(), alone, batches, strict=True):
        wanted.append(torch.autograd.grad(output.square().sum(), [batch, *trained(network)]))

    vectors = {voice: bank.join(voice, network) for voice, network in networks.items()}
    shares = zip(networks, counts, strict=True)
    bank.seats = bank.seats_of(
        [Share(voice=voice, rows=count, columns=0 if frames else count) for voice, count in shares]
    )
    joint = bank.network["layer"](torch.cat(batches))
    torch.testing.assert_close(joint, torch.cat(alone), rtol=1e-5, atol=1e-6)
    loss = joint.square().sum()
    found = torch.autograd.grad(loss, batches, retain_graph=True)
    for row, gradient, (voice, network), (of_batch, *wanted_own) in zip(
        bank.gradients(loss), found, networks.items(), wanted, strict=True
    ):
        torch.testing.assert_close(gradient, of_batch, rtol=1e-5, atol=1e-5)
        for parameter, own in zip(trained(network), wanted_own, strict=True):
            torch.testing.assert_close(part_of(row, vectors[voice], parameter), own, rtol=1e-5, atol=1e-5)


def part_of(row, vector, parameter):
    """Of a row of gradients what belongs to `parameter`, a view of `vector`."""
    start = (parameter.data_ptr() - vector.data_ptr()) // vector.element_size()
    return row[start : start + parameter.numel()].view_as(parameter)


def test_a_voices_gradients_hold_nothing_of_anothers(base):
    bank = AdapterBank(base, torch.device("cpu"))
    networks = [adapted(base, 0), adapted(base, 1)]
    for number, network in enumerate(networks):
        bank.join(str(number), network)
    bank.seats = bank.seats_of([Share(voice="0", rows=2, columns=2), Share(voice="1", rows=3, columns=3)])
    x = torch.randn(5, 6)
    x[0] = torch.nan
    first, second = bank.gradients(bank.network["layer"](x).sum())
    assert first.isnan().any()
    assert second.isfinite().all()
    assert second.any()


def test_autocast_computes_in_its_type_and_gives_gradients_in_the_adapters_own(base):
    bank = AdapterBank(base, torch.device("cpu"))
    network = adapted(base, 0)
    bank.join("anna", network)
    bank.seats = bank.seats_of([Share(voice="anna", rows=4, columns=4)])
    x = torch.randn(4, 6, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = bank.network["layer"](x)
        wanted = network["layer"](x)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output, wanted, rtol=0.05, atol=0.05)
    assert bank.gradients(output.float().sum()).dtype == torch.float32


def test_no_tensor_of_the_base_is_copied(base):
    bank = AdapterBank(base, torch.device("cpu"))
    network = adapted(base, 0)
    bank.join("anna", network)
    ours = {parameter.data_ptr() for parameter in base.parameters()}
    frozen = [parameter for parameter in network.parameters() if not parameter.requires_grad]
    assert len(frozen) == 3
    assert {parameter.data_ptr() for parameter in frozen} <= ours
    assert {parameter.data_ptr() for parameter in bank.network.parameters()} <= ours
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    assert network.state_dict()["layer.into"].equal(before["layer.into"])
    assert network.state_dict().keys() > before.keys()


def test_a_voice_may_leave_and_another_come(base):
    bank = AdapterBank(base, torch.device("cpu"))
    first, second = adapted(base, 0), adapted(base, 1)
    bank.join("anna", first)
    bank.leave("anna")
    assert bank.voices == frozenset()
    bank.join("bert", second)
    bank.seats = bank.seats_of([Share(voice="bert", rows=2, columns=2)])
    x = torch.randn(2, 6)
    torch.testing.assert_close(bank.network["layer"](x), second["layer"](x))
    with pytest.raises(AssertionError, match="never joined"):
        bank.seats = bank.seats_of([Share(voice="anna", rows=2, columns=2)])


def test_who_does_not_fit_is_refused(base):
    bank = AdapterBank(base, torch.device("cpu"))
    bank.join("anna", adapted(base, 0))
    with pytest.raises(ValueError, match="anna is in this bank already"):
        bank.join("anna", adapted(base, 1))
    with pytest.raises(ValueError, match=r"bert trains other parts .*layer.tail"):
        bank.join("bert", adapted(base, 1, tail=False))
    odd = adapted(base, 1)
    odd["layer"].tail[0].weight.requires_grad_(False)
    with pytest.raises(ValueError, match="trains in part"):
        bank.join("carl", odd)
    assert bank.voices == {"anna"}
