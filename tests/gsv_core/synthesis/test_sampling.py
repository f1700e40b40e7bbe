from dataclasses import replace

import pytest
import torch

from gsv_core.networks.text_to_semantic import TextToSemantic, TextToSemanticConfig
from gsv_core.synthesis.sampling import (
    FIRST_END,
    Sampling,
    Sentence,
    clocks_of,
    draw_token,
    draw_tokens,
    sample_sentences,
    sample_tokens,
)
from tests.parity.recorded import RecordedCase
from tests.shared import shared_path

NONE_SEEN = torch.empty(0, dtype=torch.int64)
EVEN = torch.ones(4)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    config = TextToSemanticConfig(phoneme_count=40, token_count=33, width=16, heads=2, layers=2, text_vector_width=6)
    return TextToSemantic(config).eval()


def test_the_highest_score_wins_an_even_race_and_the_fastest_clock_an_even_field():
    assert draw_token(torch.tensor([0.0, 3.0, 1.0, 2.0]), NONE_SEEN, Sampling(), EVEN) == (1, 1)
    assert draw_token(torch.zeros(4), NONE_SEEN, Sampling(), torch.tensor([1.0, 1.0, 0.1, 1.0])) == (2, 0)


def test_tokens_seen_before_lose_whatever_the_sign_of_their_score():
    sampling = Sampling(repetition_penalty=2.0)
    assert draw_token(torch.tensor([3.0, 2.0]), torch.tensor([0]), sampling, torch.ones(2)) == (1, 1)
    assert draw_token(torch.tensor([-2.0, -3.0]), torch.tensor([0, 0]), sampling, torch.ones(2)) == (1, 1)
    scores = torch.tensor([3.0, 2.0])
    draw_token(scores, torch.tensor([0]), sampling, torch.ones(2))
    assert scores.tolist() == [3.0, 2.0]


def test_top_k_and_top_p_rule_out_the_tail_but_never_the_best():
    scores = torch.tensor([2.0, 1.0, 0.0, -1.0])  # 64, 24, 9, 3 %
    late = torch.tensor([1e9, 1e9, 1e9, 1e-9])
    assert draw_token(scores, NONE_SEEN, Sampling(top_k=4), late)[0] == 3
    assert draw_token(scores, NONE_SEEN, Sampling(top_k=3), late)[0] != 3
    second = torch.tensor([1e9, 1e-9, 1e9, 1e9])
    assert draw_token(scores, NONE_SEEN, Sampling(top_p=0.9), second)[0] == 1
    assert draw_token(scores, NONE_SEEN, Sampling(top_p=0.7), second)[0] == 0
    assert draw_token(scores, NONE_SEEN, Sampling(top_p=1e-6), second)[0] == 0


def test_top_p_looks_at_scores_before_temperature():
    scores = torch.tensor([2.0, 1.0, 0.0, -1.0])
    second = torch.tensor([1e9, 1e-9, 1e9, 1e9])
    hot = Sampling(top_p=0.7, temperature=100.0)
    assert draw_token(scores, NONE_SEEN, hot, second)[0] == 0


def test_draws_follow_the_softmax():
    scores = torch.tensor([0.0, 1.0, 2.0])
    draw = torch.Generator().manual_seed(0)
    counts = torch.zeros(3)
    for _ in range(3000):
        counts[draw_token(scores, NONE_SEEN, Sampling(), torch.empty(3).exponential_(generator=draw))[0]] += 1
    assert torch.allclose(counts / 3000, scores.softmax(0), atol=0.03)


def test_the_end_cannot_come_in_the_first_tokens_and_then_does(network):
    eager = TextToSemantic(network.config).eval()
    eager.load_state_dict(network.state_dict())
    # Whatever comes in, the last norm gives ones: the end mark scores 16, every token 0.
    with torch.no_grad():
        eager.h.layers[-1].norm2.weight.zero_()
        eager.h.layers[-1].norm2.bias.fill_(1.0)
        eager.ar_predict_layer.weight.zero_()
        eager.ar_predict_layer.weight[-1] = 1.0
    tokens = sample_tokens(eager, torch.tensor([1, 2]), None, None, Sampling(), torch.Generator().manual_seed(0))
    assert len(tokens) == FIRST_END
    assert int(tokens.max()) < 32


def test_a_generator_decides_everything(network):
    def tokens(seed):
        draw = torch.Generator().manual_seed(seed)
        prompt = torch.tensor([4, 9, 1])
        sampling = Sampling(longest_tokens=20)
        return sample_tokens(network, torch.arange(7), None, prompt, sampling, draw).tolist()

    assert tokens(1) == tokens(1) != tokens(2)
    assert 1 <= len(tokens(1)) <= 20


def test_a_bound_ends_what_does_not_end_by_itself(network):
    draw = torch.Generator().manual_seed(0)
    tokens = sample_tokens(network, torch.arange(3), None, None, Sampling(), draw, most_tokens=5)
    assert len(tokens) == 5
    with pytest.raises(ValueError, match="at least one phoneme"):
        sample_tokens(network, torch.empty(0, dtype=torch.int64), None, None, Sampling(), draw)


@pytest.fixture(scope="module")
def talkative():
    """A network whose sentences end by themselves, after different numbers of tokens."""
    torch.manual_seed(3)
    config = TextToSemanticConfig(phoneme_count=40, token_count=33, width=64, heads=2, layers=2, text_vector_width=6)
    network = TextToSemantic(config).eval()
    with torch.no_grad():
        network.ar_predict_layer.weight.mul_(0.3)
    return network


def _sentences(count, most_tokens=120):
    draw = torch.Generator().manual_seed(5)
    return [
        Sentence(
            phoneme_ids=torch.randint(40, (3 + 2 * row,), generator=draw),
            text_vectors=torch.randn(3 + 2 * row, 6, generator=draw) if row % 2 else None,
            prompt_tokens=torch.randint(32, (row,), generator=draw) if row else None,
            clocks=clocks_of(torch.Generator().manual_seed(row)),
            most_tokens=most_tokens + row,
        )
        for row in range(count)
    ]


@pytest.mark.parametrize("sampling", [Sampling(top_k=1), Sampling(), Sampling(top_k=20, top_p=0.9, temperature=1.3)])
def test_sentences_get_together_what_each_gets_alone(talkative, sampling):
    together = sample_sentences(talkative, _sentences(6), sampling)
    alone = [sample_sentences(talkative, [sentence], sampling)[0] for sentence in _sentences(6)]
    assert [tokens.tolist() for tokens in together] == [tokens.tolist() for tokens in alone]
    if sampling.top_k > 1:
        lengths = [len(tokens) for tokens in together]
        assert len(set(lengths)) > 2, "the rows should end at different steps for this test to say something"
        assert min(lengths) < 120


def test_each_sentence_has_its_own_bound(network):
    sentences = [replace(sentence, most_tokens=3 + row) for row, sentence in enumerate(_sentences(3))]
    assert [len(tokens) for tokens in sample_sentences(network, sentences, Sampling())] == [3, 4, 5]
    with pytest.raises(ValueError, match="most_tokens 0"):
        replace(sentences[0], most_tokens=0)


def test_rows_are_drawn_as_if_each_were_alone():
    draw = torch.Generator().manual_seed(2)
    scores, clocks = torch.randn(5, 30, generator=draw), torch.empty(5, 30).exponential_(generator=draw)
    seen = torch.rand(5, 30, generator=draw) < 0.3
    sampling = Sampling(top_k=7, top_p=0.8, temperature=0.7)
    tokens, best = draw_tokens(scores, seen, sampling, clocks)
    for row in range(5):
        assert draw_token(scores[row], seen[row].nonzero()[:, 0], sampling, clocks[row]) == (tokens[row], best[row])


def test_a_sentence_takes_no_longer_than_the_slowest_speaker():
    sampling = Sampling(longest_tokens=1000)
    assert sampling.most_tokens(30) == 250  # 10 s
    assert sampling.most_tokens(1) == 22
    assert sampling.most_tokens(500) == 1000


def test_nor_much_longer_than_the_prompt_would():
    sampling = Sampling()
    assert sampling.most_tokens(30, prompt_pace=2.0) == 25 + 2 * 2 * 30
    assert sampling.most_tokens(30, prompt_pace=50.0) == sampling.most_tokens(30)
    assert sampling.most_tokens(2, prompt_pace=1e-3) == 22


@pytest.mark.parametrize(
    "values",
    [{"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.1}, {"temperature": 0.0}, {"repetition_penalty": -1.0}],
)
def test_settings_out_of_range_are_refused(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        replace(Sampling(), **values)


@pytest.mark.parametrize("name", ["s1_v1_infer", "s1_v2_infer"])
@pytest.mark.parametrize(
    ("run", "sampling"),
    [
        ("greedy", Sampling(top_k=1)),
        ("sampled", Sampling(top_k=8, top_p=0.95, temperature=0.8)),
        ("eos", Sampling(top_k=1)),
    ],
)
def test_decoding_agrees_with_recorded_runs(name, run, sampling):
    case = RecordedCase(shared_path("golden/models") / name)
    sizes = case.constructor["config"]["model"]
    config = TextToSemanticConfig(
        phoneme_count=sizes["phoneme_vocab_size"],
        token_count=sizes["vocab_size"],
        width=sizes["hidden_dim"],
        heads=sizes["head"],
        layers=sizes["n_layer"],
    )
    network = TextToSemantic(config).eval()
    network.load_state_dict({key.removeprefix("model."): value for key, value in case.weights().items()})
    inputs, recorded = case.inputs, case.results[f"{run}_tokens"][0]
    if run == "eos":
        with torch.no_grad():
            network.ar_predict_layer.weight[-1] = inputs["eos_row"]
    prompt = inputs["prompt"][0]
    expected = recorded[len(prompt) :].tolist()
    recorded_clocks = inputs["q_exponential"] if run == "sampled" else torch.ones(1, config.token_count)
    sentence = Sentence(
        phoneme_ids=inputs["phoneme_ids"][0],
        text_vectors=inputs["bert_feature"][0].T,
        prompt_tokens=prompt,
        clocks=_Replayed(recorded_clocks),
        most_tokens=120 if run == "eos" else len(expected),
    )
    (tokens,) = sample_sentences(network, [sentence], sampling)
    assert tokens.tolist() == expected


class _Replayed:
    """Recorded clocks, row by row; ones after the last."""

    def __init__(self, rows):
        self.rows, self.given = rows, 0

    def __call__(self, steps, tokens):
        block = self.rows[self.given : self.given + steps, :tokens]
        self.given += steps
        return torch.cat([block, torch.ones(steps - len(block), tokens)])
