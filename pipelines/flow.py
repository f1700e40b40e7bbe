"""The flow: recordings in, a corpus out. Its stages in order.

ingest → normalise (→ separate) → slice → transcribe → phonemise → features → screen → shard
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gsv_core.checkpoints.releases import Release
from gsv_core.text.front_end import engines as text_engines
from gsv_core.text.lexicon import Lexicon
from gsv_core.text.mandarin_polyphones import polyphones_digest
from pipelines.corrections import Corrections
from pipelines.engines.choose import EngineConfig, engine_versions
from pipelines.engines.decoder import DecodeLimits
from pipelines.engines.separator import separator_versions
from pipelines.stage import Resources, Stage, digest_of
from pipelines.stages.features import ExtractFeatures
from pipelines.stages.ingest import IngestSources
from pipelines.stages.normalise import NormaliseRecordings
from pipelines.stages.phonemise import PhonemiseUtterances
from pipelines.stages.screen import Bounds, ScreenExamples
from pipelines.stages.separate import SeparateSpeech, SeparationConfig
from pipelines.stages.shard import ShardWriter
from pipelines.stages.slice import SliceRecordings
from pipelines.stages.transcribe import Guards, TranscribeClips


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """Everything about the flow that a user may set. `gpus` is what one actor of a model stage takes of a GPU."""

    release: Release = Release.NANO
    base_folder: str | None = None
    polyphones: str | None = None
    """The folder of g2pW, which reads Mandarin characters of several readings by context; see docs/text.md."""
    target_lufs: float = -16.0
    shortest_s: float = 2.0
    longest_s: float = 10.0
    engines: EngineConfig = field(default_factory=EngineConfig)
    limits: DecodeLimits = field(default_factory=DecodeLimits)
    guards: Guards = field(default_factory=Guards)
    bounds: Bounds = field(default_factory=Bounds)
    separation: SeparationConfig = field(default_factory=SeparationConfig)
    gpus: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Flow:
    """The stages in order, and what writes the result. Printable, comparable, sent to workers as it is."""

    stages: tuple[Stage[Any, Any], ...]
    writer: ShardWriter
    derived_from: dict[str, str]
    engine_versions: dict[str, str]
    polyphones_digest: str | None = None

    def heard(self) -> dict[str, Any]:
        """The part of what decides the result that no base has a say in: what was heard stays when the base changes."""
        return {
            "stages": [stage.fingerprint() for stage in self.stages],
            "writer": asdict(self.writer),
            "engines": self.engine_versions,
        }

    def fingerprint(self) -> dict[str, Any]:
        """What decides the result of a unit, given its recordings."""
        return {
            **self.heard(),
            "derived_from": self.derived_from,
            "text": text_engines() | ({"g2pW": self.polyphones_digest} if self.polyphones_digest else {}),
        }

    @property
    def heard_digest(self) -> str:
        return digest_of(self.heard())

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
    corrections: Corrections | None = None,
) -> Flow:
    """The flow of one config over one base.

    `symbols` is the base's phoneme inventory; `derived_from` names what makes each derived member of a shard, and
    alone says what of a base decides a unit, `base_digest` only which base every worker must load;
    `lexicons` are the user's words by voice, `corrections` what people said of single clips.
    """
    polyphones = polyphones_digest(Path(config.polyphones)) if config.polyphones else None
    model_stage = Resources(cpus=1.0, gpus=config.gpus)
    wanted = config.separation.mode != "off"
    separate = SeparateSpeech(config=config.separation, target_lufs=config.target_lufs, engines=config.engines)
    # A stage that is not there leaves no trace in the ids of units.
    separation = (separate,) if wanted else ()
    versions = engine_versions(config.engines) | (separator_versions(config.separation.engine) if wanted else {})
    return Flow(
        stages=(
            IngestSources(limits=config.limits),
            NormaliseRecordings(limits=config.limits, target_lufs=config.target_lufs),
            *separation,
            SliceRecordings(shortest_s=config.shortest_s, longest_s=config.longest_s, engines=config.engines),
            TranscribeClips(
                shortest_s=config.shortest_s,
                longest_s=config.longest_s,
                guards=config.guards,
                engines=config.engines,
                corrections=corrections or Corrections(),
                resources=model_stage,
            ),
            PhonemiseUtterances(
                symbols=symbols,
                lexicons=dict(lexicons or {}),
                polyphones=config.polyphones,
                polyphones_digest=polyphones,
            ),
            ExtractFeatures(
                release=config.release,
                base_digest=base_digest,
                base_folder=config.base_folder,
                engines=config.engines,
                resources=model_stage,
            ),
            ScreenExamples(bounds=config.bounds, engines=config.engines, resources=model_stage),
        ),
        writer=ShardWriter(),
        derived_from=derived_from,
        engine_versions=versions,
        polyphones_digest=polyphones,
    )
