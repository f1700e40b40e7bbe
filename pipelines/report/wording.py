"""How the report says things: names of numbers, states and reasons, and lengths of time for people."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A number people meet on the page: its name, which way is better, its form, and which engine's it is."""

    key: str
    name: str
    better: str
    """How to read it: `lower is better`, or what it should be near."""
    form: str
    engine: str | None = None
    """The role of the engine that makes it; None: our own arithmetic."""

    def show(self, value: float | None) -> str:
        """`value` as text; an en dash where there is none."""
        if value is None or not math.isfinite(value):
            return "\N{EN DASH}"
        text = f"{100 * value:.1f} %" if self.form == "share" else f"{value:{self.form}}"
        return text.replace("-", "\N{MINUS SIGN}")


MEASURES = (
    Measure(
        key="character_error_rate", name="Character errors", better="lower is better", form="share", engine="recogniser"
    ),
    Measure(key="word_error_rate", name="Word errors", better="lower is better", form="share", engine="recogniser"),
    Measure(key="likeness", name="Likeness", better="higher is better", form=".3f", engine="speaker_verifier"),
    Measure(key="quality", name="Quality, 1 to 5", better="higher is better", form=".2f", engine="quality"),
    Measure(key="mel_cepstral_distance", name="Mel cepstral distance, dB", better="lower is better", form=".2f"),
    Measure(key="duration_ratio", name="Duration ratio", better="near 1", form=".2f"),
    Measure(key="real_time_factor", name="Real-time factor", better="lower is faster", form=".2f"),
    Measure(key="score", name="Score", better="higher is better", form=".3f"),
)
HEADLINE_MEASURES = tuple(
    measure for measure in MEASURES if measure.key in ("character_error_rate", "likeness", "quality")
)

DISTRIBUTIONS = {
    "clip_seconds": ("Clip length", "s"),
    "level_lufs": ("Loudness", "LUFS"),
    "snr_db": ("Signal to noise", "dB"),
    "phonemes_per_second": ("Speech rate", "phonemes/s"),
    "quality": ("Predicted quality", "of 5"),
    "character_error_rate": ("Given against recognised text", "error rate"),
    "speaker_consistency": ("One speaker throughout", "cosine"),
}

STATES = {
    "registered": ("Registered", "\N{BLACK CIRCLE}"),
    "trained": ("Trained", "\N{CIRCLE WITH LEFT HALF BLACK}"),
    "prepared": ("Prepared", "\N{WHITE CIRCLE}"),
    "too_little_data": ("Too little data", "\N{WHITE UP-POINTING TRIANGLE}"),
    "failed": ("Failed", "\N{MULTIPLICATION X}"),
}

METRICS = {
    "cross_entropy": "Token cross-entropy",
    "accuracy": "Token accuracy",
    "mel": "Mel distance",
    "flow": "Flow-matching loss",
    "kl": "KL divergence",
    "adversarial": "Adversarial loss of the generator",
    "feature_matching": "Feature matching",
    "discriminator": "Loss of the discriminators",
}
PHASES = {"semantic": "GPT, text to semantic tokens", "wave": "SoVITS, semantic tokens to wave"}
FIRST_METRICS = (("semantic", "cross_entropy"), ("wave", "mel"), ("wave", "flow"))
"""What held-out data judges training by; the others are a trainer's."""

ROLES = {
    "recogniser": "Recogniser",
    "speaker_verifier": "Speaker likeness",
    "quality": "Quality",
    "voice_activity": "Voice activity",
    "content": "Content features",
    "text": "Text",
}

SETTINGS = {
    "name": "Recipe",
    "semantic": "GPT",
    "wave": "SoVITS",
    "train_seconds": "Training took",
    "step_seconds": "Gradient steps took",
    "batch_seconds": "Waiting for batches",
    "held_out_seconds": "Held-out clips took",
    "evaluate_seconds": "Evaluation took",
    "gpu_seconds": "GPU time",
}

COVERED = {
    "phonemes": ("Phonemes", "phoneme"),
    "tones": ("Tones", "tone"),
    "pairs": ("Phoneme pairs", "pair"),
}
"""Kinds of sounds a voice may cover; in English the tones are stresses."""

LANGUAGES = {"zh": "Mandarin", "en": "English", "ja": "Japanese", "ko": "Korean", "yue": "Cantonese"}


def words(name: str) -> str:
    """`low_snr_db` -> `low SNR dB`."""
    capitals = {"snr": "SNR", "db": "dB", "gpu": "GPU", "lufs": "LUFS"}
    return " ".join(capitals.get(word, word) for word in name.replace("_", " ").split(" "))


def heading(name: str) -> str:
    """`derived_from` -> `Derived from`; a setting that has a name of its own gets that."""
    if name in SETTINGS:
        return SETTINGS[name]
    spaced = words(name)
    return spaced[:1].upper() + spaced[1:]


def duration(seconds: float | None) -> str:
    """`4.2 s`, `3:07 min`, `2:05:10 h`; an en dash where there is none."""
    if seconds is None or not math.isfinite(seconds):
        return "\N{EN DASH}"
    if seconds == 0:
        return "0 s"
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600:,}:{whole % 3600 // 60:02d}:{whole % 60:02d} h"


def share(part: float, whole: float) -> str:
    """A part as whole percent; a small one is not called nothing."""
    if whole <= 0:
        return "\N{EN DASH}"
    percent = 100 * part / whole
    if 0 < percent < 1:
        return "< 1 %"
    return f"{percent:.0f} %"


def count(amount: int, singular: str, plural: str | None = None) -> str:
    """`1 voice`, `2 voices`."""
    return f"{amount:,} {singular if amount == 1 else plural or singular + 's'}"
