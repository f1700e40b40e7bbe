from pathlib import Path

import pytest
import torch
from transformers import HubertConfig, HubertModel

from jobs import bench_features
from jobs.bench_features import FeatureBench, made_waves, measure_content


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A HuBERT of toy width in the place of the full one."""

    def save(folder: Path) -> None:
        torch.manual_seed(0)
        config = HubertConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, conv_dim=[8] * 7,
            num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2,
        )  # fmt: skip
        HubertModel(config).save_pretrained(folder)

    monkeypatch.setattr(bench_features, "save_untrained", save)


@pytest.mark.slow
def test_both_ways_and_the_batched_path_are_measured(small: None, tmp_path: Path) -> None:
    theirs, ours, batched = measure_content(FeatureBench(repeats=1, cpus=2), tmp_path)
    assert theirs.shape == "clip at a time, 2 threads"
    assert ours.shape.startswith("2 actors of 1 thread: ")
    assert ours.rate > 0
    assert float(batched.shape.split(": ")[1].split(" ")[0]) < 1e-4


def test_the_other_way_is_transformers_own_network_and_gives_the_same(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench_features.save_untrained(tmp_path)
    [wave] = made_waves((0.5,))
    ours = bench_features._our_encoder(tmp_path)(wave)
    monkeypatch.delattr(bench_features, "HubertContentEncoder")
    torch.testing.assert_close(bench_features._upstream_encoder(tmp_path)(wave), ours, atol=1e-5, rtol=0)


def test_waves_are_as_long_as_asked_for_and_always_the_same() -> None:
    assert [len(wave) for wave in made_waves((0.5, 1.0))] == [8_000, 16_000]
    assert made_waves((0.5,))[0].tobytes() == made_waves((0.5,))[0].tobytes()


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="bench features: need"):
        FeatureBench(repeats=0)
