import copy

import pytest
import torch
from torch import nn

from gsv_core.networks.lora import (
    FLOW_TARGETS,
    add_lora,
    fold_factors,
    load_trained_state,
    merge_lora,
    own_names,
    trained_state,
    upstream_names,
)
from gsv_core.networks.text_to_semantic import TextToSemantic, TextToSemanticConfig

GPT = TextToSemanticConfig(
    phoneme_count=11, token_count=9, width=8, heads=2, layers=2, text_vector_width=4, dropout=0.0
)


class _Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.to_q = nn.Linear(6, 4)
        self.to_out = nn.ModuleList([nn.Linear(4, 6, bias=False), nn.Dropout(0.0)])
        self.register_buffer("rates", torch.ones(2))

    def forward(self, x):
        return self.to_out[0](torch.tanh(self.to_q(x)))


class _Voice(nn.Module):
    """As semantic-to-mel: one adapted part, one that trains whole, one that is frozen."""

    def __init__(self):
        super().__init__()
        self.cfm = nn.Sequential(_Attention(), _Attention())
        self.bridge = nn.Linear(6, 6)
        self.enc_p = nn.Linear(6, 6).requires_grad_(False)

    def forward(self, x):
        return self.cfm(self.bridge(self.enc_p(x)))


@pytest.fixture
def voice():
    torch.manual_seed(0)
    return _Voice()


def _fill(network):
    """Adapters as after some training."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("lora_B"):
                parameter.normal_(generator=draw)


def _speak(gpt):
    draw = torch.Generator().manual_seed(2)
    phonemes, tokens = torch.randint(11, (2, 5), generator=draw), torch.randint(8, (2, 4), generator=draw)
    return gpt(phonemes, torch.tensor([5, 3]), tokens, torch.tensor([4, 2])).logits


def test_new_adapters_change_nothing(voice):
    x = torch.randn(3, 6)
    before = voice(x)
    assert add_lora(voice.cfm, ["to_q", "to_out.0"], rank=2) == [
        "0.to_q.weight",
        "0.to_out.0.weight",
        "1.to_q.weight",
        "1.to_out.0.weight",
    ]
    assert torch.equal(voice(x), before)


@pytest.mark.parametrize("alpha", [None, 6.0])
def test_merging_gives_the_adapted_network_without_adapters(voice, alpha):
    x, base = torch.randn(3, 6), copy.deepcopy(voice)
    add_lora(voice.cfm, ["to_q", "to_out.0"], rank=2, alpha=alpha)
    _fill(voice)
    adapted = voice(x)
    first = voice.cfm[0].to_q
    expected = base.cfm[0].to_q.weight + (alpha or 2) / 2 * first.lora_B @ first.lora_A
    assert not torch.allclose(adapted, base(x), atol=1e-2)
    merge_lora(voice)
    torch.testing.assert_close(voice(x), adapted)
    torch.testing.assert_close(voice.cfm[0].to_q.weight, expected)
    assert voice.state_dict().keys() == base.state_dict().keys()
    assert type(voice.cfm[0].to_q) is nn.Linear


def test_merging_leaves_a_shared_base_alone(voice):
    weight = voice.cfm[0].to_q.weight
    before = weight.detach().clone()
    add_lora(voice.cfm, ["to_q"], rank=1)
    _fill(voice)
    merge_lora(voice)
    assert torch.equal(weight, before)
    assert not torch.equal(voice.cfm[0].to_q.weight, before)


def test_only_adapters_of_the_adapted_part_train(voice):
    add_lora(voice.cfm, ["to_q"], rank=2)
    _fill(voice)
    voice(torch.randn(3, 6)).square().sum().backward()
    trained = {name for name, parameter in voice.named_parameters() if parameter.grad is not None}
    factors = {f"cfm.{layer}.to_q.lora_{side}" for layer in (0, 1) for side in "AB"}
    assert trained == {"bridge.weight", "bridge.bias"} | factors
    assert all(p.grad.abs().max() > 0 for p in voice.parameters() if p.grad is not None)


def test_names_are_those_of_peft_and_come_back(voice):
    add_lora(voice.cfm, ["to_q"], rank=2)
    saved = upstream_names(trained_state(voice))
    assert {name: tuple(tensor.shape) for name, tensor in saved.items()} == {
        "bridge.weight": (6, 6),
        "bridge.bias": (6,),
        "cfm.base_model.model.0.rates": (2,),
        "cfm.base_model.model.1.rates": (2,),
        "cfm.base_model.model.0.to_q.lora_A.default.weight": (2, 6),
        "cfm.base_model.model.0.to_q.lora_B.default.weight": (4, 2),
        "cfm.base_model.model.1.to_q.lora_A.default.weight": (2, 6),
        "cfm.base_model.model.1.to_q.lora_B.default.weight": (4, 2),
    }
    everything = upstream_names(voice.state_dict())
    assert "cfm.base_model.model.0.to_q.base_layer.bias" in everything
    assert "cfm.base_model.model.0.to_out.0.weight" in everything
    assert "enc_p.weight" in everything
    assert own_names(everything).keys() == voice.state_dict().keys()


def test_what_was_trained_fits_a_freshly_adapted_base(voice):
    fresh = copy.deepcopy(voice)
    add_lora(voice.cfm, ["to_q"], rank=2)
    _fill(voice)
    add_lora(fresh.cfm, ["to_q"], rank=2)
    load_trained_state(fresh, own_names(upstream_names(trained_state(voice))))
    x = torch.randn(3, 6)
    assert torch.equal(fresh(x), voice(x))
    lacking = trained_state(voice)
    del lacking["cfm.0.to_q.lora_A"]
    with pytest.raises(ValueError, match=r"missing cfm\.0\.to_q\.lora_A; unknown nothing"):
        load_trained_state(fresh, lacking)
    with pytest.raises(ValueError, match="missing nothing; unknown else"):
        load_trained_state(fresh, trained_state(voice) | {"else": torch.zeros(1)})


def test_packed_projections_of_gpt_are_adapted_as_a_matrix():
    torch.manual_seed(0)
    gpt = TextToSemantic(GPT)
    base = copy.deepcopy(gpt)
    names = add_lora(gpt, ["in_proj_weight", "linear1", "ar_text_embedding.word_embeddings"], rank=2)
    assert "h.layers.1.self_attn.in_proj_weight" in names
    assert torch.equal(_speak(gpt), _speak(base))
    assert gpt.state_dict().keys() > base.state_dict().keys()
    extra = gpt.state_dict().keys() - base.state_dict().keys()
    assert "h.layers.0.self_attn.in_proj_weight.lora_A" in extra
    assert all(name.endswith((".lora_A", ".lora_B")) for name in extra)
    _fill(gpt)
    adapted = _speak(gpt)
    adapted.square().sum().backward()
    assert {n for n, p in gpt.named_parameters() if p.grad is not None and p.grad.abs().max() > 0} == {
        n for n, p in gpt.named_parameters() if p.requires_grad
    }
    twin = copy.deepcopy(base)
    add_lora(twin, ["in_proj_weight", "linear1", "ar_text_embedding.word_embeddings"], rank=2)
    twin.load_state_dict(gpt.state_dict())
    assert torch.equal(_speak(twin), adapted)
    assert torch.equal(_speak(copy.deepcopy(gpt)), adapted)
    merge_lora(gpt)
    torch.testing.assert_close(_speak(gpt), adapted)
    assert gpt.state_dict().keys() == base.state_dict().keys()
    base.load_state_dict(gpt.state_dict())
    torch.testing.assert_close(_speak(base), adapted)


def test_what_cannot_be_adapted_is_refused(voice):
    with pytest.raises(ValueError, match="rank of 1 or more, got 0"):
        add_lora(voice.cfm, ["to_q"], rank=0)
    with pytest.raises(ValueError, match="is called to_k, rates"):
        add_lora(voice.cfm, ["to_q", "to_k", "rates"], rank=1)
    assert voice.cfm[0].to_q.weight.requires_grad
    add_lora(voice.cfm, ["to_q"], rank=1)
    with pytest.raises(ValueError, match="merge them first"):
        add_lora(voice.cfm, FLOW_TARGETS, rank=1)


def test_stored_factors_are_folded_into_the_matrix_of_the_voice_or_else_of_its_base():
    down, up = torch.ones(2, 3), torch.ones(4, 2)
    own = {"q.weight": torch.zeros(4, 3), "in_proj": torch.ones(4, 3)}
    pairs = {f"{owner}.lora_{side}": factor for owner in ("q", "in_proj") for side, factor in (("A", down), ("B", up))}
    folded = fold_factors({"q.weight": torch.full((4, 3), 5.0), "bias": torch.ones(1)} | pairs, own)
    assert {name: tensor.unique().tolist() for name, tensor in folded.items()} == {
        "q.weight": [7.0],
        "in_proj": [3.0],
        "bias": [1.0],
    }
    for lonely in ({"q.lora_A": down}, {"q.lora_B": up}, {"k.lora_A": down, "k.lora_B": up}):
        with pytest.raises(ValueError, match="not a pair that belongs to it"):
            fold_factors(lonely, own)
