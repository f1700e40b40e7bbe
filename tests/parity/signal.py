"""Spectrograms and filter banks on recorded cases."""

from collections.abc import Iterator, Mapping
from typing import Any

from gsv_core.audio.spectrogram import SpectrogramConfig, linear_spectrogram, mel_filterbank, mel_of_linear
from tests.parity.recorded import Comparison, RecordedCase


def signal(case: RecordedCase) -> Iterator[Comparison]:
    wave = case.inputs["wav_f64"].float()
    for name, sizes in case.constructor.items():
        config = spectrogram_config(sizes)
        spectrogram = linear_spectrogram(wave, config)
        mel = mel_of_linear(spectrogram, config)
        yield case.compare(f"{name}_spec", spectrogram)
        yield case.compare(f"{name}_mel", mel)
        if f"{name}_mel_normed" in case.results:
            yield case.compare(f"{name}_mel_normed", (mel + 12) / 14 * 2 - 1)
        rows, columns = case.results[f"{name}_melbank_nonzero_idx"].long().T
        filters = mel_filterbank(config).clone()
        # Weights are areas below 0.1; the sentence about spectrograms would let anything pass.
        yield case.compare(f"{name}_melbank_nonzero_val", filters[rows, columns], tolerance=1e-7)
        # Everything else is zero, but for a bin that lies on an edge to within rounding.
        filters[rows, columns] = 0
        yield Comparison(f"{name}_melbank_nonzero_idx", filters.max().item(), 1e-7)


def spectrogram_config(sizes: Mapping[str, Any]) -> SpectrogramConfig:
    return SpectrogramConfig(
        rate_hz=sizes["sr"],
        n_fft=sizes["n_fft"],
        hop=sizes["hop"],
        window=sizes["win"],
        mel_bands=sizes["mels"],
        fmin=sizes["fmin"],
        fmax=sizes["fmax"],
    )
