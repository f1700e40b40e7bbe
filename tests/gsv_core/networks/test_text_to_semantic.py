import copy
import pickle
from dataclasses import replace

import pytest
import torch

from gsv_core.networks import text_to_semantic
from gsv_core.networks.prefix_attention import PrefixAttention, item_masks
from gsv_core.networks.text_to_semantic import TextToSemantic, TextToSemanticConfig

CONFIG = TextToSemanticConfig(phoneme_count=40, token_count=33, width=16, heads=2, layers=2, text_vector_width=6)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return TextToSemantic(CONFIG).eval()


@pytest.fixture(scope="module")
def batch():
    draw = torch.Generator().manual_seed(1)
    return {
        "phoneme_ids": torch.randint(40, (2, 9), generator=draw),
        "phoneme_lengths": torch.tensor([9, 5]),
        "tokens": torch.randint(32, (2, 12), generator=draw),
        "token_lengths": torch.tensor([8, 12]),
        "text_vectors": torch.randn(2, 9, 6, generator=draw),
    }


def _alone(batch, row):
    phonemes, tokens = int(batch["phoneme_lengths"][row]), int(batch["token_lengths"][row])
    return {
        "phoneme_ids": batch["phoneme_ids"][row : row + 1, :phonemes],
        "phoneme_lengths": batch["phoneme_lengths"][row : row + 1],
        "tokens": batch["tokens"][row : row + 1, :tokens],
        "token_lengths": batch["token_lengths"][row : row + 1],
        "text_vectors": batch["text_vectors"][row : row + 1, :phonemes],
    }


def test_padding_has_no_influence(network, batch):
    together = network(**batch)
    alone = [network(**_alone(batch, row)) for row in range(2)]
    for row, single in enumerate(alone):
        count = single.logits.shape[1]
        torch.testing.assert_close(together.logits[row, :count], single.logits[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together.loss_sum, sum(single.loss_sum for single in alone))
    assert int(together.target_count) == 8 + 1 + 12 + 1


def test_upstreams_mask_lets_padding_in_and_equals_ours_at_equal_lengths(network, batch):
    assert not torch.allclose(network(**batch).loss_sum, network(**batch, upstream_padding_mask=True).loss_sum)
    even = batch | {"phoneme_lengths": torch.tensor([9, 9]), "token_lengths": torch.tensor([12, 12])}
    torch.testing.assert_close(network(**even).logits, network(**even, upstream_padding_mask=True).logits)


def test_padding_counts_only_when_asked_for(network, batch):
    counted = network(**batch, count_padding=True)
    assert int(counted.target_count) == 2 * 13
    assert counted.loss_sum > network(**batch).loss_sum


def test_attention_drops_weights_only_when_asked_to(batch):
    torch.manual_seed(0)
    still = TextToSemantic(replace(CONFIG, dropout=0.0)).train()
    for layer in still.h.blocks():
        layer.self_attn.dropout = 0.5
    assert torch.equal(still(**batch).loss_sum, still(**batch).loss_sum)
    assert not torch.equal(still(**batch).loss_sum, still(**batch, attention_dropout=True).loss_sum)


def test_leaving_padding_out_of_the_work_changes_no_gradient(batch):
    torch.manual_seed(0)
    together, alone = (TextToSemantic(replace(CONFIG, dropout=0.0)).train() for _ in range(2))
    alone.load_state_dict(together.state_dict())
    together(**batch).loss_sum.backward()
    for row in range(2):
        alone(**_alone(batch, row)).loss_sum.backward()
    for (name, one), other in zip(together.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-5, rtol=1e-4, msg=name)


def test_targets_are_the_tokens_and_the_end_mark(network, batch):
    forward = network(**batch)
    assert forward.targets[0].tolist() == [*batch["tokens"][0, :8].tolist(), *[32] * 5]
    assert forward.target_mask[0].tolist() == [True] * 9 + [False] * 4
    assert 0 <= forward.accuracy(3) <= forward.accuracy(33) == 1


def test_a_token_does_not_see_what_follows(network, batch):
    changed = batch | {"tokens": batch["tokens"].clone()}
    changed["tokens"][1, 7:] = 3
    torch.testing.assert_close(network(**changed).logits[1, :8], network(**batch).logits[1, :8])
    assert not torch.allclose(network(**changed).logits[1, 8:], network(**batch).logits[1, 8:])


@pytest.mark.parametrize("prompt", [0, 4])
def test_decoding_step_by_step_gives_the_teacher_forced_logits(network, batch, prompt):
    single = _alone(batch, 1)
    wanted = network(**single).logits[0]
    tokens = single["tokens"]
    given = tokens[:, :prompt] if prompt else None
    # Less room than needed, so that the cache has to grow on the way.
    logits, cache = network.prefill(single["phoneme_ids"], single["text_vectors"], given, room=2)
    decoded = [logits[0]] + [network.step(tokens[:, i], cache)[0] for i in range(prompt, tokens.shape[1])]
    torch.testing.assert_close(torch.stack(decoded), wanted[prompt:].detach(), atol=1e-5, rtol=1e-5)


def test_texts_of_different_length_decode_together_as_they_do_alone(network, batch):
    fed = torch.tensor([5, 7])
    logits, cache = network.prefill(
        batch["phoneme_ids"], batch["text_vectors"], None, phoneme_lengths=batch["phoneme_lengths"]
    )
    followed = network.step(fed, cache)
    for row in range(2):
        single = _alone(batch, row)
        first, own_cache = network.prefill(single["phoneme_ids"], single["text_vectors"], None)
        torch.testing.assert_close(logits[row], first[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(followed[row], network.step(fed[row : row + 1], own_cache)[0], atol=1e-5, rtol=1e-5)


def test_prompts_of_different_length_decode_together_as_they_do_alone(network, batch):
    fed = torch.tensor([5, 7])
    lengths = {"phoneme_lengths": batch["phoneme_lengths"], "prompt_lengths": torch.tensor([0, 3])}
    logits, cache = network.prefill(batch["phoneme_ids"], batch["text_vectors"], batch["tokens"][:, :4], **lengths)
    followed = network.step(fed, cache)
    for row in range(2):
        single, prompt = _alone(batch, row), int(lengths["prompt_lengths"][row])
        first, own_cache = network.prefill(
            single["phoneme_ids"], single["text_vectors"], single["tokens"][:, :prompt] if prompt else None
        )
        torch.testing.assert_close(logits[row], first[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(followed[row], network.step(fed[row : row + 1], own_cache)[0], atol=1e-5, rtol=1e-5)


def test_rows_that_are_kept_go_on_as_before(network, batch):
    def decode(rows):
        _, cache = network.prefill(
            batch["phoneme_ids"], batch["text_vectors"], None, phoneme_lengths=batch["phoneme_lengths"]
        )
        cache.keep(rows)
        return network.step(torch.tensor([5, 7])[rows], cache)

    torch.testing.assert_close(decode(torch.tensor([1])), decode(torch.tensor([0, 1]))[1:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("copies", [1, 8])
def test_a_step_is_the_same_in_every_layout_of_the_weights(copies):
    torch.manual_seed(0)
    network = TextToSemantic(replace(CONFIG, width=64, heads=4)).eval()
    phonemes = torch.arange(7).expand(copies, -1)
    _, cache = network.prefill(phonemes, None, None)
    assert {weights.out.ndim for weights in cache.weights} == {2 if copies == 1 else 3}
    fed = torch.tensor([3, 9, 4])
    decoded = torch.stack([network.step(token.expand(copies), cache) for token in fed])
    whole = network(phonemes[:1], torch.tensor([7]), fed[None], torch.tensor([3])).logits[0, 1:].detach()
    torch.testing.assert_close(decoded, whole.unsqueeze(1).expand(-1, copies, -1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", [1, 8])
def test_the_layout_for_decoding_is_kept_until_a_weight_changes(rows):
    torch.manual_seed(0)
    network = TextToSemantic(replace(CONFIG, width=64, heads=4)).eval()
    laid_out = network.step_weights(rows)
    assert network.step_weights(rows) is laid_out
    with torch.no_grad():
        network.h.layers[1].linear1.weight[3, 5] = 7.0
    assert network.step_weights(rows) is not laid_out
    assert (network.step_weights(rows)[1].wide == 7.0).sum() == 1
    other = TextToSemantic(network.config)
    network.load_state_dict(other.state_dict())
    assert torch.equal(network.step_weights(rows)[0].out, other.step_weights(rows)[0].out)


def test_the_layout_for_decoding_stays_out_of_copies_and_files(network):
    network.step_weights(1)
    names = network.state_dict().keys()
    assert len(pickle.dumps(network)) == len(pickle.dumps(TextToSemantic(CONFIG).eval()))
    assert copy.deepcopy(network).step_weights(1) is not network.step_weights(1)
    assert names == TextToSemantic(CONFIG).state_dict().keys()


def test_columns_reserved_ahead_are_not_seen(network, batch):
    # A captured step looks at all of them, always.
    single, fed = _alone(batch, 1), torch.tensor([5])
    prompt = single["tokens"][:, :3]
    _, narrow = network.prefill(single["phoneme_ids"], single["text_vectors"], prompt)
    _, wide = network.prefill(single["phoneme_ids"], single["text_vectors"], prompt, room=300)
    assert narrow.window()[0].shape[3] < wide.capacity
    for column in range(wide.length, wide.length + 3):
        with torch.no_grad():
            at = torch.tensor([column])
            seen_all = network.decode(fed, at, wide.positions, wide.bias, wide.past, wide.weights)
        torch.testing.assert_close(seen_all, network.step(fed, narrow), atol=1e-5, rtol=1e-5)
    assert narrow.length == wide.length + 3


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("copies", [1, 4])
def test_a_step_compiles_as_one_graph(backend, copies):
    torch.manual_seed(0)
    network = TextToSemantic(replace(CONFIG, width=64, heads=4)).eval()
    compiled = torch.compile(network.decode, backend=backend, fullgraph=True, dynamic=False)
    phonemes = torch.arange(7).expand(copies, -1)

    @torch.no_grad()
    def decode(step):
        _, cache = network.prefill(phonemes, None, None)
        logits = []
        for token in (3, 9, 4):
            column = torch.tensor([cache.length])
            fed = torch.full((copies,), token)
            logits.append(step(fed, column, cache.positions, *cache.window(), cache.weights))
            cache.length += 1
        return torch.stack(logits)

    torch.testing.assert_close(decode(compiled), decode(network.decode))


def test_half_the_bits_decode_nearly_the_same(network, batch):
    single = _alone(batch, 0)
    small = copy.deepcopy(network).to(torch.bfloat16)
    decoded = []
    for one in (network, small):
        _, cache = one.prefill(single["phoneme_ids"], single["text_vectors"], single["tokens"][:, :3])
        decoded.append(one.step(torch.tensor([5]), cache).float())
    assert not torch.equal(*decoded)
    torch.testing.assert_close(*decoded, atol=0.1, rtol=0.1)


def test_positions_beyond_the_table_are_computed(network):
    phonemes = torch.ones(1, 700, dtype=torch.int64)
    logits, _ = network.prefill(phonemes, None, None)
    assert torch.isfinite(logits).all()


def test_no_text_vectors_means_zeros(network, batch):
    zeros = batch | {"text_vectors": torch.zeros(2, 9, 6)}
    none = batch | {"text_vectors": None}
    torch.testing.assert_close(network(**zeros).logits, network(**none).logits)


def test_every_weight_gets_a_gradient(batch):
    torch.manual_seed(0)
    network = TextToSemantic(CONFIG)
    network(**batch).loss_sum.backward()
    missing = [n for n, p in network.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert missing == []


def test_the_same_seed_gives_the_same_network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        first = TextToSemantic(CONFIG).state_dict()
        torch.manual_seed(7)
        second = TextToSemantic(CONFIG).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    "sizes, message",
    [({"width": 15}, "multiple of heads"), ({"layers": 0}, "positive"), ({"token_count": 1}, "end mark")],
)
def test_impossible_sizes_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        TextToSemanticConfig(**({"width": 16, "heads": 2} | sizes))


@pytest.mark.parametrize("by_item", [True, False])
def test_what_predicts_is_what_the_logits_are_made_of(network, batch, monkeypatch, by_item):
    """Both ways of attention, that of a GPU too."""
    whole = network(**batch)
    monkeypatch.setattr(text_to_semantic, "goes_by_item", lambda x: by_item)
    hidden, targets = network.predicting(**batch)
    torch.testing.assert_close(network.ar_predict_layer(hidden), whole.logits[whole.target_mask])
    assert torch.equal(targets, whole.targets[whole.target_mask])


def test_items_in_one_step_of_the_graph_have_the_bits_of_items_by_themselves():
    """Of the attention and its gradient."""
    attention = PrefixAttention(16, 2, 0.0)
    phonemes, tokens = torch.tensor([3, 5]), torch.tensor([7, 2])
    masks = item_masks(phonemes, tokens, torch.float32)
    packed = torch.randn(17, 48, requires_grad=True)
    joint = attention._by_item(packed, masks, 0.0)
    apart = [attention._by_item(own, (mask,), 0.0) for own, mask in zip(packed.split([10, 7]), masks, strict=True)]
    assert torch.equal(joint, torch.cat(apart))
    above = torch.randn(17, 16)
    (found,), (wanted,) = (torch.autograd.grad(mixed, packed, above) for mixed in (joint, torch.cat(apart)))
    assert torch.equal(found, wanted)
