"""The names in a config to loaded engines. Nothing is loaded before it is asked for, once per actor."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

from pipelines.engines.packaged import check_folder, content_digest
from pipelines.engines.protocols import QualityModel, Recogniser, SpeakerVerifier, VoiceActivity

RECOGNISERS = ("pocketsphinx", "whisperx")
SPEAKER_VERIFIERS = ("resemblyzer", "ecapa")
QUALITY_MODELS = ("dnsmos", "none")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Which engine does what. Names of models are local folders or names on the hub."""

    recogniser: str = "pocketsphinx"
    recogniser_model: str = "large-v3"
    """Faster-whisper's: a folder in CTranslate2's format, or a name of the hub. Not used by pocketsphinx."""
    align_models: Mapping[str, str] = field(default_factory=dict)
    """Language → wav2vec2 folder or hub name; whisperX's own choice for the others."""
    compute_type: str = "int8"
    recogniser_batch: int = 1
    """Windows of 30 s that whisperX reads at once: 1 on a CPU, where more buys nothing; 8 to 32 on a GPU."""
    speaker_verifier: str = "resemblyzer"
    speaker_verifier_model: str = "speechbrain/spkrec-ecapa-voxceleb"
    """Folder with ECAPA's tensors, or a name on the hub. Not used by resemblyzer."""
    quality: str = "dnsmos"
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.recogniser_batch < 1:
            raise ValueError(f"engines.recogniser_batch must be at least 1, got {self.recogniser_batch}")
        for what, value, known in (
            ("recogniser", self.recogniser, RECOGNISERS),
            ("speaker_verifier", self.speaker_verifier, SPEAKER_VERIFIERS),
            ("quality", self.quality, QUALITY_MODELS),
        ):
            if value not in known:
                raise ValueError(f"engines.{what}: expected one of {', '.join(known)}, got {value!r}")

    def fingerprint(self) -> dict[str, Any]:
        """What of these decides a result: of a model in a folder what is in it, not where it lies on this machine."""
        settings = asdict(self)
        settings.pop("recogniser_batch")
        for name in ("recogniser_model", "speaker_verifier_model"):
            settings[name] = content_digest(settings[name]) or settings[name]
        settings["align_models"] = {
            language: content_digest(model) or model for language, model in self.align_models.items()
        }
        return settings


_PACKAGES = {
    "pocketsphinx": ("pocketsphinx",),
    "whisperx": ("whisperx", "faster-whisper", "ctranslate2"),
    "resemblyzer": ("resemblyzer",),
    "ecapa": ("speechbrain",),
    "dnsmos": ("speechmos",),
    "none": (),
}


def engine_versions(config: EngineConfig) -> dict[str, str]:
    """Package → version of every engine the config names, and model → digest of those in local folders.

    Another version, or another file of the same name, may hear otherwise.
    """
    chosen = (config.recogniser, config.speaker_verifier, config.quality)
    packages = {package for engine in chosen for package in _PACKAGES[engine]} | {"faster-whisper"}  # Silero's weights
    found = {f"{what} model": content_digest(model) for what, model in _models(config).items()}
    return {
        **{package: version(package) for package in sorted(packages)},
        **{what: digest for what, digest in found.items() if digest is not None},
    }


def _models(config: EngineConfig) -> dict[str, str]:
    """What each model that is loaded is for → its folder or name on the hub."""
    models = {}
    if config.recogniser == "whisperx":
        models["recogniser"] = config.recogniser_model
        models |= {f"{language} alignment": folder for language, folder in sorted(config.align_models.items())}
    if config.speaker_verifier == "ecapa":
        models["speaker verifier"] = config.speaker_verifier_model
    return models


def check_engines(config: EngineConfig) -> None:
    """See, before any work, that model folders named by the config are there. Names of the hub are not looked up.

    Raises:
        ValueError: a folder without its model.
    """
    if config.recogniser == "whisperx":
        from pipelines.engines.recogniser import check_models

        check_models(config.recogniser_model, config.align_models)
    if config.speaker_verifier == "ecapa":
        check_folder(config.speaker_verifier_model, "the speaker verifier's model", "embedding_model.ckpt")


def load_recogniser(config: EngineConfig) -> Recogniser:
    """Speech to text and word times."""
    if config.recogniser == "whisperx":
        from pipelines.engines.recogniser import WhisperXRecogniser

        return WhisperXRecogniser(
            config.recogniser_model,
            align_models=config.align_models,
            compute_type=config.compute_type,
            device=config.device,
            batch_size=config.recogniser_batch,
        )
    from pipelines.engines.embedded_recogniser import PocketsphinxRecogniser

    return PocketsphinxRecogniser()


def load_speaker_verifier(config: EngineConfig) -> SpeakerVerifier:
    """A wave to a vector that says who speaks."""
    if config.speaker_verifier == "ecapa":
        from pipelines.engines.speaker_verifier import EcapaVerifier

        return EcapaVerifier(config.speaker_verifier_model, device=config.device)
    from pipelines.engines.embedded_verifier import ResemblyzerVerifier

    return ResemblyzerVerifier()


def load_quality(config: EngineConfig, *, windows: int = 2) -> QualityModel | None:
    """Predicted opinion, heard in that many places of a long wave; None where the config wants none."""
    if config.quality == "none":
        return None
    from pipelines.engines.quality import DnsmosQuality

    return DnsmosQuality(windows=windows)


def load_voice_activity(_config: EngineConfig) -> VoiceActivity:
    """Where somebody speaks."""
    from pipelines.engines.voice_activity import SileroVoiceActivity

    return SileroVoiceActivity()
