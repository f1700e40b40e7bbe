"""The speaker encoder and its filter banks on recorded cases."""

from collections.abc import Iterator

import torch

from gsv_core.networks.speaker_encoder import SpeakerEncoder, SpeakerEncoderConfig, kaldi_fbank
from tests.parity.recorded import Comparison, RecordedCase


def speaker_fbank(case: RecordedCase) -> Iterator[Comparison]:
    yield case.compare("fbank", kaldi_fbank(case.inputs["wav16k"], case.results["fbank"].shape[-1]))


def speaker_encoder(case: RecordedCase) -> Iterator[Comparison]:
    sizes, published = case.constructor, SpeakerEncoderConfig()
    config = SpeakerEncoderConfig(
        channels=sizes.get("m_channels", published.channels),
        blocks=tuple(sizes.get("num_blocks", published.blocks)),
        base_width=sizes["baseWidth"],
        scales=sizes["scale"],
        expansion=sizes["expansion"],
        mel_bands=case.inputs["fbank"].shape[-1],
        head_width=case.weights()["seg_1.weight"].shape[0],
    )
    network = SpeakerEncoder(config).eval()
    network.load_state_dict(case.weights())
    case.watch(network)
    with torch.no_grad():
        yield case.compare("forward3", network.describe(case.inputs["fbank"]))
        if "forward" in case.results:
            yield case.compare("forward", network.verify(case.inputs["fbank"]))
