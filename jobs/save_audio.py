"""What a voice sounds like at each save of its training: the fixed sentences of its language, as WAV files to hear.

The saves of SoVITS are heard, each with the newest GPT: that is trained before, and changes no timbre. Only where
SoVITS does not train are those of GPT, with the base's second half.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from gsv_core.audio.wav import wav_bytes
from gsv_core.checkpoints.base import BaseModel
from gsv_core.synthesis.sampling import Sampling
from gsv_core.synthesis.synthesiser import Prompt, Synthesiser
from gsv_core.training.loop import Save

logger = logging.getLogger(__name__)

FOLDER = "audio/at_saves"
_SAMPLING = Sampling(longest_tokens=100)
"""Four seconds for a piece of a sentence: weights that have not learnt to end would else talk for a minute."""


@dataclass(frozen=True, kw_only=True)
class SaveAudio:
    """Speaks with the weights in `weights`, the folder of a run's saves, as they come."""

    base: BaseModel
    weights: Path
    prompt: Prompt
    language: str
    sentences: int
    phase: str = "wave"
    """Whose saves are heard."""

    def speak(self, save: Save) -> dict[str, bytes]:
        """File name → WAV bytes of each sentence; nothing where weights cannot speak yet, or are not to be heard."""
        from jobs.scoring import fixed_sentences

        if save.phase != self.phase:
            return {}

        newest = {half: max(self.weights.glob(f"{half}-s*.safetensors"), default=None) for half in ("semantic", "wave")}
        newest[save.phase] = self.weights / f"{save.phase}-s{save.step:06d}.safetensors"
        if save.phase == "semantic":
            newest["wave"] = None
        spoken = {}
        # Whatever synthesis draws, training must go on as if nothing had been said.
        with torch.random.fork_rng():
            try:
                synthesiser = Synthesiser(self.base, newest["semantic"], newest["wave"])
                for sentence in fixed_sentences(self.language)[: self.sentences]:
                    speech = synthesiser.speak(
                        sentence.text, sentence.language, self.prompt, seed=0, sampling=_SAMPLING
                    )
                    name = f"{FOLDER}/{save.phase}-s{save.step:06d}/{sentence.name}.wav"
                    spoken[name] = wav_bytes(speech.wave, speech.rate_hz)
            except (ValueError, RuntimeError) as error:
                logger.warning("no audio at the save of %s after %d steps: %s", save.phase, save.step, error)
        return spoken
