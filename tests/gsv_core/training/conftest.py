import gc

import pytest
import torch

from gsv_core.checkpoints.base import BaseModel, load_base, tensors_digest
from gsv_core.checkpoints.releases import Release
from gsv_core.networks import adapter_bank
from gsv_core.networks.semantic_to_mel import SemanticToMel, SemanticToMelConfig
from gsv_core.networks.vocoder import HifiGanVocoder, VocoderConfig
from tests.gsv_core.made_items import made_items
from tests.gsv_core.training.made_gpu import PretendedGpu


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def base():
    return load_base("nano")


@pytest.fixture(scope="session")
def items(base):
    return made_items(base)


@pytest.fixture(scope="session")
def mel_base(base):
    """A release v4 at toy width, beside nano's text to semantic and content encoder."""
    config = SemanticToMelConfig(
        content_width=base.semantic_to_wave.config.content_width,
        latent=8,
        width=8,
        filter_width=12,
        layers=2,
        dropout=0.0,
        join_width=12,
        join_heads=2,
        timbre_width=12,
        reference_width=8,
        condition_width=16,
        condition_layers=2,
        flow_width=32,
        flow_heads=2,
        flow_head_width=8,
        flow_layers=2,
        flow_filter_width=48,
        flow_condition_layers=1,
        flow_position_kernel=5,
        flow_position_groups=4,
        stretch=2.0,
        most_frames_per_token=4.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = SemanticToMel(config).eval()
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if "linear" in name and name.startswith("cfm"):
                    parameter.normal_(std=0.05)  # zero at the start, which would hide the layers before it
        vocoder = HifiGanVocoder(VocoderConfig(channels=32, block_kernels=(3,), block_dilations=((1,),))).eval()
    return BaseModel(
        release=Release.V4,
        digest=tensors_digest(network.state_dict()),
        token_digest=base.token_digest,
        text_to_semantic=base.text_to_semantic,
        content_encoder=base.content_encoder,
        semantic_to_mel=network.requires_grad_(False),
        vocoder=vocoder.requires_grad_(False),
    )


@pytest.fixture
def gpu(monkeypatch):
    """A pretended one, with nothing on it."""
    adapter_bank._blocks.cache_clear()  # which may be on that of the test before
    made = PretendedGpu(monkeypatch)
    # Garbage may hold a storage that lives on elsewhere; when it is collected, the storage seems to end.
    gc.disable()
    yield made
    gc.enable()
