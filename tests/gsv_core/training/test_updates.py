import pytest
import torch
from torch import nn

from gsv_core.training.schedules import PhasePlan
from gsv_core.training.updates import (
    changed_parameters,
    gradient_norm,
    restore_parameters,
    set_rates,
    trainable_copy,
    trained_parameters,
    under,
)

CPU = torch.device("cpu")


def test_a_prefix_is_whole_parts_of_a_name():
    assert under("enc_p.proj.weight", ["enc_p.proj"])
    assert under("prelu.weight", ["prelu.weight"])
    assert not under("enc_p.projection.weight", ["enc_p.proj"])
    assert under("anything", [""])


def test_only_the_named_parts_of_the_copy_train():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    copy = trainable_copy(network, ["1"], CPU)
    assert {name for name, parameter in copy.named_parameters() if parameter.requires_grad} == {"1.weight", "1.bias"}
    assert copy[0].weight.data_ptr() != network[0].weight.data_ptr()
    with pytest.raises(ValueError, match="nothing in the network is called decoder"):
        trainable_copy(network, ["decoder"], CPU)


def test_changed_parameters_are_whole_and_own_their_memory():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    copy = trainable_copy(network, [""], CPU)
    with torch.no_grad():
        copy[1].bias[0] += 1
    changed = changed_parameters(trained_parameters(copy), network)
    assert changed.keys() == {"1.bias"}
    with torch.no_grad():
        copy[1].bias.zero_()
    assert changed["1.bias"].any()


def test_saved_parameters_of_another_shape_are_named():
    parameters = trained_parameters(nn.Linear(2, 3))
    restore_parameters(parameters, {"weight": torch.ones(3, 2), "bias": torch.zeros(3)})
    assert bool(parameters["weight"].eq(1).all())
    with pytest.raises(ValueError, match=r"weight is \(2, 2\) there and \(3, 2\) here \(1 such tensors\)"):
        restore_parameters(parameters, {"weight": torch.ones(2, 2), "bias": torch.zeros(3)})
    with pytest.raises(ValueError, match="bias is nothing there"):
        restore_parameters(parameters, {"weight": torch.ones(3, 2)})


def test_groups_keep_their_share_of_the_rate():
    parameters = [nn.Parameter(torch.ones(1)) for _ in range(2)]
    optimiser = torch.optim.AdamW(
        [{"params": parameters[:1], "share": 1.0}, {"params": parameters[1:], "share": 0.4}], lr=1.0
    )
    rate = set_rates(optimiser, 0, PhasePlan(steps=10, batch_size=1, learning_rate=2.0, warm_up_steps=1))
    assert rate == pytest.approx(1.0)
    assert [group["lr"] for group in optimiser.param_groups] == pytest.approx([1.0, 0.4])


def test_the_norm_is_over_all_gradients():
    parameters = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(1))]
    parameters[0].grad = torch.tensor([3.0, 0.0])
    assert gradient_norm(parameters).item() == pytest.approx(3.0)
    parameters[1].grad = torch.tensor([4.0])
    assert gradient_norm(parameters).item() == pytest.approx(5.0)
