"""A wave to a speaker vector by ECAPA-TDNN, through speechbrain.

Desplanques, Thienpondt, Demuynck 2020, arXiv:2005.07143. SpeechBrain's model folders carry a YAML that can run code, so
theirs is never read: the folder gives tensors, loaded as nothing but tensors, and the YAML for speechbrain's own loader
is written here, sized after them. The only importer of speechbrain. Axes: T samples, K width.
"""

import json
import pickle
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gsv_core.audio.resample import resample
from pipelines.engines.packaged import forget_lazy_modules, package_version

_RATE_HZ = 16_000
_TENSORS = "embedding_model.ckpt"
_SHORTEST_S = 0.1

# `!new:` makes an object of the named class; every class named here is speechbrain's own, every value a number.
_HYPERPARAMS = """\
compute_features: !new:speechbrain.lobes.features.Fbank
  n_mels: {mel_bands}
mean_var_norm: !new:speechbrain.processing.features.InputNormalization
  norm_type: sentence
  std_norm: False
embedding_model: !new:speechbrain.lobes.models.ECAPA_TDNN.ECAPA_TDNN
  input_size: {mel_bands}
  channels: {channels}
  kernel_sizes: {kernel_sizes}
  dilations: {dilations}
  attention_channels: {attention_channels}
  res2net_scale: {res2net_scale}
  se_channels: {se_channels}
  lin_neurons: {width}
modules:
  compute_features: !ref <compute_features>
  mean_var_norm: !ref <mean_var_norm>
  embedding_model: !ref <embedding_model>
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
  loadables:
    embedding_model: !ref <embedding_model>
  paths:
    embedding_model: {tensors}
"""


class EcapaVerifier:
    """ECAPA vectors; `source` is a folder with `embedding_model.ckpt`, or a name on the hub."""

    def __init__(self, source: str, *, device: str = "cpu") -> None:
        """Raises:
        ValueError: the tensors are missing, are more than tensors, or are no ECAPA network's.
        """
        try:
            from speechbrain.inference.classifiers import EncoderClassifier
        except ImportError as error:
            raise ValueError(
                f"the package speechbrain is missing or broken ({error}): pip install speechbrain"
            ) from error
        forget_lazy_modules()
        tensors_path = _find(source)
        sizes = _sizes(_load_tensors(tensors_path), tensors_path)
        self.width = int(sizes["width"])
        self.name = f"ecapa (speechbrain {package_version('speechbrain')}) {Path(source).name}"
        with tempfile.TemporaryDirectory(prefix="gsv-ecapa-") as folder:
            tensors = Path(folder) / _TENSORS
            tensors.symlink_to(tensors_path)
            hyperparams = _HYPERPARAMS.format(**sizes, tensors=json.dumps(str(tensors)))
            (Path(folder) / "hyperparams.yaml").write_text(hyperparams, encoding="utf-8")
            self._classifier = EncoderClassifier.from_hparams(
                source=folder, savedir=str(Path(folder) / "loaded"), run_opts={"device": device}
            )

    def embed(self, wave: np.ndarray, rate_hz: int) -> np.ndarray:
        """`wave` (T,) -> (K,) float32 of unit length, from this wave alone: padding would change it.

        Raises:
            ValueError: the wave is not mono, silent, or shorter than 0.1 s.
        """
        if wave.ndim != 1 or not wave.any() or len(wave) < _SHORTEST_S * rate_hz:
            raise ValueError(
                f"ecapa: expected a mono wave (T,) of {_SHORTEST_S} s and more with sound, got {wave.shape}"
            )
        audio = torch.from_numpy(resample(wave, rate_hz, _RATE_HZ))[None]
        with torch.inference_mode():
            vector = self._classifier.encode_batch(audio)[0, 0].float().cpu()
        return (vector / vector.norm()).numpy()


def _find(source: str) -> Path:
    """The tensors in a folder, or fetched from the hub: only this one file, never the YAML beside it."""
    folder = Path(source)
    if folder.is_dir() or folder.is_absolute() or source.startswith("."):
        path = folder / _TENSORS
        if not path.is_file():
            raise ValueError(f"ECAPA's tensors are not in {source}: expected {_TENSORS} there")
        return path.resolve()
    from speechbrain.utils.fetching import fetch

    try:
        return Path(fetch(_TENSORS, source)).resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"ECAPA's tensors {source!r} could not be fetched: name a folder that holds {_TENSORS}"
        ) from error


def _load_tensors(path: Path) -> Mapping[str, Tensor]:
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise ValueError(
            f"{path} is refused: it holds more than tensors, or is damaged ({_first_line(error)})"
        ) from error
    if not isinstance(tensors, Mapping) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ValueError(f"{path} is refused: expected a mapping of names to tensors")
    return tensors


def _sizes(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """The numbers of the YAML, read off the tensors; dilations cannot be, and are those of the paper."""
    try:
        first = tensors["blocks.0.conv.conv.weight"]
        inner = sum(1 for name in tensors if name.startswith("blocks.") and name.endswith(".tdnn1.conv.conv.weight"))
        blocks = [tensors[f"blocks.{index}.tdnn1.conv.conv.weight"] for index in range(1, inner + 1)]
        last = tensors["mfa.conv.conv.weight"]
        branches = sum(
            1
            for name in tensors
            if name.startswith("blocks.1.res2net_block.blocks.") and name.endswith("conv.conv.weight")
        )
        kernel = tensors["blocks.1.res2net_block.blocks.0.conv.conv.weight"].shape[2]
        return {
            "mel_bands": first.shape[1],
            "channels": [first.shape[0], *(block.shape[0] for block in blocks), last.shape[0]],
            "kernel_sizes": [first.shape[2], *(kernel for _ in blocks), last.shape[2]],
            "dilations": [1, *range(2, inner + 2), 1],
            "attention_channels": tensors["asp.tdnn.conv.conv.weight"].shape[0],
            "res2net_scale": branches + 1,
            "se_channels": tensors["blocks.1.se_block.conv1.conv.weight"].shape[0],
            "width": tensors["fc.conv.weight"].shape[0],
        }
    except KeyError as error:
        raise ValueError(f"{path} holds no ECAPA network: {error.args[0]} is missing") from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
