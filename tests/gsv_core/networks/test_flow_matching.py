import pytest
import torch
from torch import nn

from gsv_core.networks.diffusion_transformer import DiffusionTransformer
from gsv_core.networks.flow_matching import HALVINGS, FlowDraws, FlowMatching, prompt_lengths

LENGTHS = torch.tensor([10, 7])


class _Field(nn.Module):
    """A velocity that is easily followed by hand: a constant, the condition's mean, and the step size."""

    def __init__(self, constant=0.0):
        super().__init__()
        self.constant = constant
        self.padding_leaks = False
        self.embedded = []
        self.asked = []

    def embed_condition(self, condition, mask, *, drop=False):
        self.embedded.append(drop)
        return torch.zeros_like(condition) if drop else condition

    def embed_step(self, step):
        return step

    def forward(self, x, known, time, step, condition, mask=None, *, recompute=False):
        self.asked.append((time.tolist(), step.tolist(), known))
        drift = condition.mean(dim=1, keepdim=True) + self.constant + step[:, None, None]
        return torch.zeros_like(x) + drift


@pytest.fixture
def mel():
    return torch.randn(2, 3, 10, generator=torch.Generator().manual_seed(0))


def _condition(value=0.0):
    return torch.full((2, 4, 10), value)


def _draws(**changes):
    draw = torch.Generator().manual_seed(1)
    values = {
        "time": torch.tensor([0.2, 0.6]),
        "noise": torch.randn(2, 3, 10, generator=draw),
        "prompt_lengths": torch.tensor([4, 0]),
        "halvings": None,
    }
    return FlowDraws(**(values | changes))


def test_the_loss_is_the_error_of_the_velocity_behind_the_prompt(mel):
    draws = _draws()
    losses = FlowMatching(_Field(0.5))(mel, LENGTHS, _condition(), draws)
    error = (mel - draws.noise - 0.5).square()
    torch.testing.assert_close(losses, torch.stack([error[0, :, 4:10].mean(), error[1, :, 0:7].mean()]))


def test_the_prompt_is_known_and_never_noisy(mel):
    field = _Field()
    field.forward = lambda x, known, *rest, **options: field.asked.append((x, known)) or torch.zeros_like(x)
    FlowMatching(field)(mel, LENGTHS, _condition(), _draws())
    (x, known), *_ = field.asked
    assert torch.equal(known[0, :, :4], mel[0, :, :4])
    assert known[0, :, 4:].abs().max() == known[1].abs().max() == 0
    assert x[0, :, :4].abs().max() == 0
    torch.testing.assert_close(x[1], 0.4 * _draws().noise[1] + 0.6 * mel[1])


def test_shortcuts_aim_where_two_half_steps_go(mel):
    field = _Field()
    draws = _draws(halvings=torch.tensor([2, 7]))
    losses = FlowMatching(field)(mel, LENGTHS, _condition(), draws)
    first, second, trained = field.asked
    # Steps of 1/128 count as infinitely small; the network answers for the doubled step.
    assert first[1] == second[1] == [0.25, 0.0]
    torch.testing.assert_close(torch.tensor(second[0]), torch.tensor([0.45, 0.6 + 1 / 128]))
    assert trained[1] == [0.5, 2 / 128]
    torch.testing.assert_close(losses, torch.tensor([(0.5 - 0.25) ** 2, (2 / 128) ** 2]))


def test_items_with_and_without_a_shortcut_share_the_pass_that_is_learnt_from(mel):
    field = _Field()
    mixed = FlowMatching(field)(mel, LENGTHS, _condition(), _draws(halvings=torch.tensor([0, 7])))
    assert [len(step) for _, step, *_ in field.asked] == [1, 1, 2]
    plain = FlowMatching(_Field())(mel, LENGTHS, _condition(), _draws())
    shortcuts = FlowMatching(_Field())(mel, LENGTHS, _condition(), _draws(halvings=torch.tensor([2, 7])))
    torch.testing.assert_close(mixed, torch.stack([plain[0], shortcuts[1]]))
    assert plain[1] != shortcuts[1]


def test_draws_follow_from_the_generator_alone(mel):
    first, again, other = (FlowDraws.of(mel, LENGTHS, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(first.noise, again.noise)
    assert torch.equal(first.time, again.time)
    assert torch.equal(first.prompt_lengths, again.prompt_lengths)
    assert not torch.equal(first.noise, other.noise)


def test_three_of_ten_batches_train_shortcuts(mel):
    draw = torch.Generator().manual_seed(0)
    drawn = [FlowDraws.of(mel, LENGTHS, draw).halvings for _ in range(400)]
    shortcuts = [halvings for halvings in drawn if halvings is not None]
    assert 0.25 < len(shortcuts) / 400 < 0.35
    assert set(torch.cat(shortcuts).tolist()) == set(HALVINGS)


def test_prompts_reach_two_thirds():
    lengths = prompt_lengths(torch.tensor([0.0, 0.5, 0.999999]), torch.tensor([30, 30, 30]))
    assert lengths.tolist() == [0, 10, 19]


def test_sampling_follows_the_velocity_in_equal_steps():
    field = _Field(2.0)
    noise = torch.randn(2, 3, 10, generator=torch.Generator().manual_seed(0))
    prompt = torch.ones(2, 3, 4)
    mel = FlowMatching(field).sample(
        _condition(1.0), torch.tensor([10, 10]), prompt, steps=4, temperature=0.5, noise=noise
    )
    torch.testing.assert_close(mel[..., 4:], 0.5 * noise[..., 4:] + 2.0 + 1.0 + 0.25)
    assert mel[..., :4].abs().max() == 0
    assert [time for time, _, _ in field.asked] == [[0.0] * 2, [0.25] * 2, [0.5] * 2, [0.75] * 2]
    assert torch.equal(field.asked[0][2][..., :4], prompt)


def test_the_condition_is_embedded_once_for_all_steps():
    field = _Field()
    FlowMatching(field).sample(_condition(), LENGTHS, torch.zeros(2, 3, 0), steps=5, guidance=0.5)
    assert field.embedded == [False, True]


def test_guidance_moves_away_from_what_is_said_without_condition():
    noise, prompt = torch.zeros(2, 3, 10), torch.zeros(2, 3, 2)
    lengths = torch.tensor([10, 10])
    flow = FlowMatching(_Field())
    plain = flow.sample(_condition(1.0), lengths, prompt, steps=2, noise=noise)
    guided = flow.sample(_condition(1.0), lengths, prompt, steps=2, guidance=0.7, noise=noise)
    torch.testing.assert_close(guided[..., 2:] - plain[..., 2:], torch.full((2, 3, 8), 0.7))
    assert torch.equal(plain, flow.sample(_condition(1.0), lengths, prompt, steps=2, guidance=0.0, noise=noise))


def test_an_item_is_sampled_in_a_batch_as_it_is_alone():
    torch.manual_seed(0)
    flow = FlowMatching(
        DiffusionTransformer(
            mel_bands=3,
            condition_width=4,
            condition_layers=1,
            width=8,
            heads=2,
            head_width=4,
            layers=2,
            filter_width=8,
            position_kernel=3,
            position_groups=2,
            dropout=0.0,
        )
    ).eval()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.normal_(std=0.3)
    noise, condition, prompt = torch.randn(2, 3, 10), torch.randn(2, 4, 10), torch.randn(2, 3, 2)
    both = flow.sample(condition, LENGTHS, prompt, steps=3, guidance=0.5, noise=noise)
    alone = flow.sample(condition[1:, :, :7], LENGTHS[1:], prompt[1:], steps=3, guidance=0.5, noise=noise[1:, :, :7])
    torch.testing.assert_close(both[1:, :, :7], alone, atol=1e-4, rtol=1e-4)
    assert both[1, :, 7:].abs().max() == 0
    first, again = (
        flow.sample(condition, LENGTHS, prompt, steps=3, generator=torch.Generator().manual_seed(5)) for _ in range(2)
    )
    assert torch.equal(first, again)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"steps": 0}, "a step or more"),
        ({"guidance": -0.5}, "guidance -0.5"),
        ({"temperature": -1.0}, "temperature -1.0"),
    ],
)
def test_impossible_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        FlowMatching(_Field()).sample(_condition(), LENGTHS, torch.zeros(2, 3, 4), **({"steps": 4} | wrong))


def test_a_prompt_as_long_as_the_speech_is_told():
    with pytest.raises(ValueError, match="shorten the prompt"):
        FlowMatching(_Field()).sample(_condition(), LENGTHS, torch.zeros(2, 3, 11), steps=1)
