"""The compiled step computes what the one in torch computes, whatever the batch."""

import pytest
import torch

from gsv_core.networks import text_to_semantic
from gsv_core.networks.semantic_decoding import SemanticCache
from gsv_core.networks.text_to_semantic import TextToSemantic, TextToSemanticConfig

pytest.importorskip("numba", reason="without numba the steps are torch's")

CONFIG = TextToSemanticConfig(phoneme_count=40, token_count=61, width=64, heads=4, layers=3, text_vector_width=8)


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> TextToSemantic:
    torch.manual_seed(0)
    monkeypatch.setattr(text_to_semantic, "_KERNEL_WEIGHTS", 0)
    return TextToSemantic(CONFIG).eval()


def decode(
    network: TextToSemantic, rows: int, steps: int = 20, keep: int | None = None
) -> tuple[list[torch.Tensor], SemanticCache]:
    """Logits (B, V) of each greedy step over prompts of different length; half-way only `keep` rows go on."""
    draws = torch.Generator().manual_seed(1)
    phonemes = torch.randint(0, CONFIG.phoneme_count, (rows, 9), generator=draws)
    prompt = torch.randint(0, CONFIG.end_token, (rows, 6), generator=draws)
    logits, cache = network.prefill(
        phonemes,
        None,
        prompt,
        phoneme_lengths=torch.arange(rows) % 4 + 6,
        prompt_lengths=torch.arange(rows) % 3 + 4,
        room=4,  # outgrown on the way
    )
    seen = []
    for step in range(steps):
        logits = network.step(logits.argmax(1), cache).clone()
        seen.append(logits)
        if keep is not None and step == steps // 2:
            cache.keep(torch.arange(keep))
            logits = logits[:keep]
    return seen, cache


@pytest.mark.parametrize(("rows", "keep"), [(1, None), (3, None), (8, None), (8, 5), (6, 1)])
def test_equals_the_step_in_torch(
    network: TextToSemantic, monkeypatch: pytest.MonkeyPatch, rows: int, keep: int | None
) -> None:
    compiled, cache = decode(network, rows, keep=keep)
    assert cache.kernel is not None
    monkeypatch.setattr(TextToSemantic, "_kernel", lambda self, rows: None)
    plain, cache = decode(network, rows, keep=keep)
    assert cache.kernel is None
    for one, other in zip(compiled, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_weights_changed_in_place_are_heeded(network: TextToSemantic) -> None:
    before, _ = decode(network, 1)
    with torch.no_grad():
        network.h.blocks()[1].linear1.weight.mul_(1.5)
    after, _ = decode(network, 1)
    assert not torch.allclose(before[0], after[0])


def test_small_networks_and_other_devices_types_stay_with_torch(
    network: TextToSemantic, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert network._kernel(1) is not None
    assert network.double()._kernel(1) is None
    monkeypatch.undo()
    assert network.float()._kernel(1) is None
