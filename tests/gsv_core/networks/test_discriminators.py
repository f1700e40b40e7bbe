import pytest
import torch

from gsv_core.networks.discriminators import DiscriminatorConfig, Discriminators, judge_both
from gsv_core.networks.layers import fold_weight_norm

SMALL = DiscriminatorConfig(periods=(2, 3), period_channels=(4, 8), scale_channels=(4, 8, 8), scale_groups=(1, 4, 1))


def test_one_output_per_judge_and_the_score_is_the_last_map():
    torch.manual_seed(0)
    outputs = Discriminators(SMALL)(torch.randn(2, 1, 301))
    assert len(outputs) == 3
    for output in outputs:
        torch.testing.assert_close(output.score, output.feature_maps[-1].flatten(1))
    assert [len(output.feature_maps) for output in outputs] == [4, 3, 3]


@pytest.mark.parametrize("trained", [True, False])
def test_judging_both_is_judging_each(trained):
    torch.manual_seed(0)
    judges, waves = Discriminators(SMALL).requires_grad_(trained), torch.randn(2, 3, 1, 200)
    for together, apart in zip(judge_both(judges, waves[0], waves[1]), (judges(waves[0]), judges(waves[1]))):
        for one, other in zip(together, apart, strict=True):
            torch.testing.assert_close(one.score, other.score)
            for left, right in zip(one.feature_maps, other.feature_maps, strict=True):
                torch.testing.assert_close(left, right)


def test_every_weight_gets_a_gradient():
    torch.manual_seed(0)
    judges = Discriminators(SMALL)
    sum(output.score.sum() for output in judges(torch.randn(1, 1, 200))).backward()
    assert [n for n, p in judges.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []


def test_wrong_waves_and_sizes_are_refused():
    with pytest.raises(ValueError, match=r"\(B, 1, T\)"):
        Discriminators(SMALL)(torch.zeros(2, 200))
    with pytest.raises(ValueError, match="groups"):
        DiscriminatorConfig(scale_channels=(6, 8, 8), scale_groups=(1, 4, 1))
    with pytest.raises(ValueError, match="positive periods"):
        DiscriminatorConfig(periods=(0,))


def test_folded_they_judge_the_same():
    torch.manual_seed(0)
    judges, wave = Discriminators(SMALL), torch.randn(2, 1, 200)
    before = [output.score for output in judges(wave)]
    fold_weight_norm(judges)
    assert not any(name.endswith(("weight_g", "weight_v")) for name in judges.state_dict())
    for expected, output in zip(before, judges(wave), strict=True):
        assert torch.equal(output.score, expected)
