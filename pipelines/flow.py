"""The flow: recordings in, a corpus out. Its stages in order.

ingest → normalise → slice → transcribe → phonemise → features → screen → shard
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from gsv_core.checkpoints.releases import Release
from gsv_core.text.front_end import engines as text_engines
from gsv_core.text.lexicon import Lexicon
from pipelines.engines.choose import EngineConfig, engine_versions
from pipelines.engines.decoder import DecodeLimits
from pipelines.stage import Resources, Stage, digest_of
from pipelines.stages.features import ExtractFeatures
from pipelines.stages.ingest import IngestSources
from pipelines.stages.normalise import NormaliseRecordings
from pipelines.stages.phonemise import PhonemiseUtterances
from pipelines.stages.screen import Bounds, ScreenExamples
from pipelines.stages.shard import ShardWriter
from pipelines.stages.slice import SliceRecordings
from pipelines.stages.transcribe import TranscribeClips


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """Everything about the flow that a user may set. `gpus` is what one actor of a model stage takes of a GPU."""

    release: Release = Release.NANO
    base_folder: str | None = None
    target_lufs: float = -16.0
    shortest_s: float = 2.0
    longest_s: float = 10.0
    engines: EngineConfig = field(default_factory=EngineConfig)
    limits: DecodeLimits = field(default_factory=DecodeLimits)
    bounds: Bounds = field(default_factory=Bounds)
    gpus: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Flow:
    """The stages in order, and what writes the result. Printable, comparable, sent to workers as it is."""

    stages: tuple[Stage[Any, Any], ...]
    writer: ShardWriter
    derived_from: dict[str, str]
    engine_versions: dict[str, str]

    def fingerprint(self) -> dict[str, Any]:
        """What decides the result of a unit, given its recordings."""
        return {
            "stages": [stage.fingerprint() for stage in self.stages],
            "writer": asdict(self.writer),
            "derived_from": self.derived_from,
            "engines": self.engine_versions,
            "text": text_engines(),
        }

    @property
    def digest(self) -> str:
        return digest_of(self.fingerprint())


def build_flow(
    config: FlowConfig,
    *,
    base_digest: str,
    symbols: str,
    derived_from: dict[str, str],
    lexicons: Mapping[str, Lexicon] | None = None,
) -> Flow:
    """The flow of one config over one base.

    `symbols` is the base's phoneme inventory; `derived_from` names the models behind a shard's derived members;
    `lexicons` are the user's words by voice.
    """
    model_stage = Resources(cpus=1.0, gpus=config.gpus)
    return Flow(
        stages=(
            IngestSources(limits=config.limits),
            NormaliseRecordings(limits=config.limits, target_lufs=config.target_lufs),
            SliceRecordings(shortest_s=config.shortest_s, longest_s=config.longest_s, engines=config.engines),
            TranscribeClips(
                shortest_s=config.shortest_s,
                longest_s=config.longest_s,
                engines=config.engines,
                resources=model_stage,
            ),
            PhonemiseUtterances(symbols=symbols, lexicons=dict(lexicons or {})),
            ExtractFeatures(
                release=config.release,
                base_digest=base_digest,
                base_folder=config.base_folder,
                engines=config.engines,
                resources=model_stage,
            ),
            ScreenExamples(bounds=config.bounds, engines=config.engines),
        ),
        writer=ShardWriter(),
        derived_from=derived_from,
        engine_versions=engine_versions(config.engines),
    )
