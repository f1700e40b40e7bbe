"""A file to what it is: which part of which release, how far trained, and what it lacks. Nothing of it is loaded.

What counts is what a file says and holds: its two bytes, its names, the rows of its phoneme embedding, its settings.
Its size and its own name count for nothing. Files of v3 and v4 have the same names, so that settings decide.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any

import safetensors
import torch

from gsv_core.checkpoints.releases import RELEASES, Release
from gsv_core.checkpoints.upstream import (
    TEXT_TO_SEMANTIC_PREFIX,
    differing_names,
    plain_settings,
    table_of,
)
from gsv_core.checkpoints.upstream_settings import (
    semantic_to_mel_config,
    semantic_to_wave_config,
    text_to_semantic_config,
)
from gsv_core.checkpoints.upstream_structure import Settings, StoredTensor, checked_file, open_file, shown
from gsv_core.networks.discriminators import Discriminators
from gsv_core.networks.lora import FLOW_TARGETS, WRAPPED, WRAPPER
from gsv_core.networks.semantic_to_mel import SemanticToMel, SemanticToMelConfig
from gsv_core.networks.semantic_to_wave import SemanticToWave, SemanticToWaveConfig
from gsv_core.networks.text_to_semantic import TextToSemantic, TextToSemanticConfig

PHONEME_ROWS = "enc_p.text_embedding.weight"
GPT_PHONEME_ROWS = "ar_text_embedding.word_embeddings.weight"
POSTERIOR = "enc_q."
"""Needed in training alone, so upstream leaves it out of what it trained."""
LORA_TRAINS = ("ref_enc.", "bridge.", "wns1.", "linear_mel.", "quantizer.")
"""What a LoRA file holds beside the adapters, apart from buffers."""

_HEADERS: Mapping[bytes, tuple[Release, str]] = {
    b"00": (Release.V1, "v1"),
    b"01": (Release.V2, "v2"),
    b"02": (Release.V3, "v3"),
    b"03": (Release.V3, "v3 with LoRA"),
    b"04": (Release.V4, "v4 with LoRA"),
    b"05": (Release.V2_PRO, "v2Pro"),
    b"06": (Release.V2_PRO_PLUS, "v2ProPlus"),
}
_PUBLISHED_STARTS: Mapping[str, Release] = {
    "c7e9fce2223f3db685cdfa1e6368728a": Release.V2_PRO,
    "66b313e39455b57ab1b0bc0b239c9d0a": Release.V2_PRO_PLUS,
    "43797be674a37c1c83ee81081941ed0f": Release.V3,
    "4f26b9476d0c5033e04162c486074374": Release.V4,
}
"""MD5 of the first 8 KiB of published generators that names do not tell apart; GPT-SoVITS knows them by it, too."""
_START_BYTES = 8192
_LATER = (Release.V2, Release.V2_PRO, Release.V2_PRO_PLUS, Release.V3, Release.V4)
_RESUME_ENTRIES = {"iteration", "optimizer"}
"""Of a resume state whose network is none of the known ones: what else must be in it to be called one."""
_PATHS = re.compile(r"(_dir|_path|_file|^pretrained_)")


class Part(StrEnum):
    """What a file is of GPT-SoVITS, or of ours."""

    TEXT_TO_SEMANTIC = "text-to-semantic"
    SEMANTIC_TO_WAVE = "semantic-to-wave"
    SEMANTIC_TO_MEL = "semantic-to-mel"
    LORA = "LoRA of semantic-to-mel"
    DISCRIMINATORS = "discriminators"
    VOCODER = "vocoder"
    SPEAKER_ENCODER = "speaker encoder"
    RESUME_STATE = "resume state"
    VOICE_WEIGHTS = "voice weights"
    TENSORS = "tensors"


@dataclass(frozen=True, kw_only=True)
class FileDescription:
    """What a file says and holds. `releases` are those it fits: GPT's files of v2 fit all that came after."""

    path: Path
    part: Part
    releases: tuple[Release, ...] = ()
    evidence: tuple[str, ...] = ()
    """How part and release were recognised."""
    dtypes: Mapping[str, int]
    """Number of tensors of each type."""
    tensors: int
    values: int
    phonemes: int | None = None
    """Rows of the phoneme embedding."""
    config: Mapping[str, Any] | None = None
    config_kind: str | None = None
    """`settings object` or `plain dict`."""
    training_paths: Mapping[str, str]
    """Settings that are paths on the machine that trained: shown, never used."""
    info: str | None = None
    epochs: int | None = None
    steps: int | None = None
    lora_rank: int | None = None
    header: str | None = None
    metadata: Mapping[str, str]
    """Of safetensors files."""
    missing: tuple[str, ...] = ()
    """Names that such a file should have; those that upstream leaves out on purpose are not among them."""
    unexpected: tuple[str, ...] = ()
    contradictions: tuple[str, ...] = ()

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong with the file, a line each."""
        differing = differing_names(self.missing, self.unexpected)
        return (*((differing,) if differing else ()), *self.contradictions)

    @property
    def release(self) -> str:
        """The releases it fits, as words."""
        if self.releases == _LATER:
            return "v2 or later"
        return ", ".join(self.releases) or "–"

    def record(self) -> dict[str, Any]:
        """All of it as JSON values."""
        own = {name: getattr(self, name) for name in self.__dataclass_fields__}
        own |= {"path": str(self.path), "part": str(self.part), "releases": [str(name) for name in self.releases]}
        own |= {name: dict(own[name]) for name in ("dtypes", "training_paths", "metadata")}
        own |= {name: list(own[name]) for name in ("evidence", "missing", "unexpected", "contradictions")}
        return own | {"problems": list(self.problems)}


def inspect_file(path: Path) -> FileDescription:
    """What `path` is.

    Raises:
        ValueError: it is damaged, hostile, or of another family; one line says which.
    """
    start = _start_of(path)
    if _is_safetensors(start):
        return _of_safetensors(path)
    _refuse_others(start, path)
    with checked_file(path) as (_, structure):
        _refuse_families(structure.content, path)
        entry, table = table_of(structure, path)
        entries = {} if entry is None else {key: value for key, value in structure.content.items() if key != entry}
    return _Recognition(path, start, structure.header, entry, table, entries).description()


def require(description: FileDescription, release: Release, *parts: Part) -> None:
    """Check that the file is one of `parts`, of `release`, and whole.

    Raises:
        ValueError: it is not; the message says what it is and what was expected.
    """
    path, expected = description.path, " or ".join(parts)
    if description.part not in parts:
        raise ValueError(f"{path}: this is {description.part} ({description.release}); {expected} expected")
    if release not in description.releases:
        wanted = _phonemes_of(release, description.part)
        if description.phonemes is not None and description.phonemes != wanted:
            raise ValueError(
                f"{path}: this is {description.release}: {description.phonemes} phonemes, {wanted} expected"
            )
        raise ValueError(f"{path}: this is {description.release} ({'; '.join(description.evidence)}), not {release}")
    if description.problems:
        raise ValueError(f"{path} is not whole: {'; '.join(description.problems)}")


def _phonemes_of(release: Release, part: Part) -> int:
    spec = RELEASES[release]
    second = spec.semantic_to_wave or spec.semantic_to_mel
    assert second is not None
    return spec.text_to_semantic.phoneme_count if part is Part.TEXT_TO_SEMANTIC else second.phoneme_count


class _Recognition:
    """One file's evidence, collected step by step."""

    def __init__(
        self,
        path: Path,
        start: bytes,
        header: bytes,
        entry: str | None,
        table: dict[str, StoredTensor],
        entries: dict[str, Any],
    ) -> None:
        self.path, self.start, self.header, self.entry, self.entries = path, start, header, entry, entries
        self.config_object = entries.get("config")
        self.config = plain_settings(self.config_object, path) or {}
        # Lightning's and GPT's own files put the network under a name of its own.
        self.prefix = TEXT_TO_SEMANTIC_PREFIX if all(name.startswith(TEXT_TO_SEMANTIC_PREFIX) for name in table) else ""
        self.table = {name.removeprefix(self.prefix): tensor for name, tensor in table.items()}
        self.evidence: list[str] = []
        self.contradictions: list[str] = []
        self.is_resume_state = entry in ("model", "state_dict") and "weight" not in entries

    def description(self) -> FileDescription:
        part = self._part()
        phonemes = self._phonemes(part)
        releases = self._releases(part, phonemes)
        missing, unexpected = self._compare(part, releases)
        tensors = self.table.values()
        return FileDescription(
            path=self.path,
            part=Part.RESUME_STATE if self.is_resume_state else part,
            releases=releases,
            evidence=tuple(self.evidence),
            dtypes=dict(sorted(Counter(tensor.dtype for tensor in tensors).items())),
            tensors=len(self.table),
            values=sum(tensor.count for tensor in tensors),
            phonemes=phonemes,
            config=self.config or None,
            config_kind=self._config_kind(),
            training_paths=_paths_of(self.config),
            info=self._text("info"),
            epochs=self._epochs(),
            steps=_number(self._text("info"), r"_(\d+)iteration"),
            lora_rank=self._rank(),
            header=self.header.decode("latin-1"),
            metadata={},
            missing=missing,
            unexpected=unexpected,
            contradictions=tuple(self.contradictions),
        )

    def _part(self) -> Part:
        names = self.table
        for part, sign in (
            (Part.TEXT_TO_SEMANTIC, GPT_PHONEME_ROWS),
            (Part.LORA, ".lora_A."),
            (Part.SEMANTIC_TO_MEL, "cfm.estimator."),
            (Part.SEMANTIC_TO_WAVE, "enc_p.mrte."),
            (Part.DISCRIMINATORS, "discriminators."),
            (Part.VOCODER, "resblocks.0.activations."),
            (Part.SPEAKER_ENCODER, "seg_1."),
            (Part.VOCODER, "resblocks.0.convs1."),
        ):
            found = next((name for name in names if sign in name), None)
            if found is not None:
                self.evidence.append(f"names such as {shown(found)}")
                return part
        if not (self.is_resume_state and self.entries.keys() >= _RESUME_ENTRIES):
            raise ValueError(
                f"{self.path} is no file of GPT-SoVITS: {len(names)} tensors, such as {shown(next(iter(names)))}"
            )
        self.evidence.append(f"entries {shown(', '.join(sorted(map(str, (*self.entries, self.entry)))))}")
        return Part.RESUME_STATE

    def _phonemes(self, part: Part) -> int | None:
        """Rows of the phoneme embedding; of GPT what the settings say, which name the same number."""
        if part is Part.TEXT_TO_SEMANTIC:
            model = self.config.get("model")
            said = model.get("phoneme_vocab_size") if isinstance(model, dict) else None
            return said if isinstance(said, int) else self.table[GPT_PHONEME_ROWS].shape[0]
        tensor = self.table.get(PHONEME_ROWS)
        return tensor.shape[0] if tensor is not None and tensor.shape else None

    def _releases(self, part: Part, phonemes: int | None) -> tuple[Release, ...]:
        if part is Part.TEXT_TO_SEMANTIC:
            return self._by_phonemes(phonemes, {512: (Release.V1,), 732: _LATER})
        if part is Part.SEMANTIC_TO_WAVE:
            return self._wave_releases(phonemes)
        if part in (Part.SEMANTIC_TO_MEL, Part.LORA):
            return self._said((Release.V3, Release.V4))
        if part is Part.DISCRIMINATORS:
            judges = len({name.split(".")[1] for name in self.table})
            self.evidence.append(f"{judges} discriminators")
            return {6: (Release.V1, Release.V2), 8: (Release.V2_PRO, Release.V2_PRO_PLUS)}.get(judges, ())
        if part is Part.VOCODER:
            return (Release.V3,) if any(".activations." in name for name in self.table) else (Release.V4,)
        return (Release.V2_PRO, Release.V2_PRO_PLUS) if part is Part.SPEAKER_ENCODER else ()

    def _wave_releases(self, phonemes: int | None) -> tuple[Release, ...]:
        if any(name.startswith("sv_emb.") for name in self.table):
            self.evidence.append("it takes speaker vectors (sv_emb)")
            return self._said((Release.V2_PRO, Release.V2_PRO_PLUS))
        releases = self._by_phonemes(phonemes, {322: (Release.V1,), 732: (Release.V2,)})
        named = _HEADERS.get(self.header)
        if named is not None and named[0] not in releases:
            self.contradictions.append(f"its first two bytes say {named[1]}, its tensors do not")
        return releases

    def _by_phonemes(self, phonemes: int | None, known: Mapping[int, tuple[Release, ...]]) -> tuple[Release, ...]:
        if phonemes is not None and phonemes in known:
            self.evidence.append(f"{phonemes} phonemes")
            return known[phonemes]
        self.contradictions.append(f"{phonemes} phonemes; GPT-SoVITS has {' or '.join(map(str, known))}")
        return ()

    def _said(self, possible: tuple[Release, ...]) -> tuple[Release, ...]:
        """Which of `possible`, whose networks have the same names: what header, start or settings say."""
        named = _HEADERS.get(self.header)
        if named is not None and named[0] in possible:
            self.evidence.append(f"its first two bytes are {self.header.decode()}: {named[1]}")
            return (named[0],)
        if named is not None:
            self.contradictions.append(f"its first two bytes say {named[1]}")
        published = _PUBLISHED_STARTS.get(hashlib.md5(self.start, usedforsecurity=False).hexdigest())
        if published in possible:
            self.evidence.append("its first 8 KiB are those of the published file")
            return (published,)
        model = self.config.get("model")
        for said in (model.get("version") if isinstance(model, dict) else None, self.config.get("version")):
            if said in {str(release) for release in possible}:
                self.evidence.append(f"its settings say {said}")
                return (Release(said),)
        self.evidence.append("nothing in it says which")
        return possible

    def _compare(self, part: Part, releases: tuple[Release, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Names missing and left over, as far as a list of what should be there can be had."""
        if not releases:
            return (), ()
        expected = _expected(part, releases[0], self.config, tuple(self.table))
        if expected is None:
            return (), ()
        missing = [name for name in expected if name not in self.table]
        if part is Part.SEMANTIC_TO_WAVE and not any(name.startswith(POSTERIOR) for name in self.table):
            missing = [name for name in missing if not name.startswith(POSTERIOR)]
        return tuple(missing), tuple(name for name in self.table if name not in expected)

    def _config_kind(self) -> str | None:
        if not isinstance(self.config_object, dict):
            return None
        return "settings object" if isinstance(self.config_object, Settings) else "plain dict"

    def _text(self, name: str) -> str | None:
        value = self.entries.get(name)
        return shown(value) if isinstance(value, str) else None

    def _epochs(self) -> int | None:
        info = self._text("info")
        found = _number(info, r"(\d+)epoch") if info and "epoch" in info else _number(info, r"GPT-e(\d+)")
        for name in ("iteration", "epoch"):
            if found is None and isinstance(self.entries.get(name), int):
                found = self.entries[name]
        return found

    def _rank(self) -> int | None:
        rank = self.entries.get("lora_rank")
        if isinstance(rank, int):
            self.evidence.append(f"LoRA of rank {rank}")
            return rank
        return None


def _expected(part: Part, release: Release, config: Mapping[str, Any], found: tuple[str, ...]) -> frozenset[str] | None:
    """The names of a whole file of this kind; None where there is no list."""
    spec = RELEASES[release]
    if part is Part.TEXT_TO_SEMANTIC:
        return _text_to_semantic_names(text_to_semantic_config(config, spec.text_to_semantic).layers)
    if part is Part.SEMANTIC_TO_WAVE and spec.semantic_to_wave is not None:
        return _semantic_to_wave_names(semantic_to_wave_config(config, spec.semantic_to_wave))
    if part in (Part.SEMANTIC_TO_MEL, Part.LORA) and spec.semantic_to_mel is not None:
        layers = semantic_to_mel_config(config, spec.semantic_to_mel).layers
        # How many blocks the flow has is nowhere written; a base decides, once there is one.
        blocks = _blocks(found, "transformer_blocks")
        text_blocks = _blocks(found, "text_blocks") if part is Part.SEMANTIC_TO_MEL else 1
        return _semantic_to_mel_names(layers, blocks, text_blocks, adapters_only=part is Part.LORA)
    if part is Part.DISCRIMINATORS and spec.discriminators is not None:
        with torch.device("meta"):
            return frozenset(Discriminators(spec.discriminators).state_dict())
    return None


def _blocks(names: tuple[str, ...], kind: str) -> int:
    """How many blocks `names` count up to, at least one and no more than there are names."""
    numbers = (re.search(rf"\.{kind}\.(\d{{1,3}})\.", name) for name in names)
    return min(1 + max((int(number[1]) for number in numbers if number), default=0), len(names))


@lru_cache(maxsize=16)
def _text_to_semantic_names(layers: int) -> frozenset[str]:
    with torch.device("meta"):
        return frozenset(TextToSemantic(TextToSemanticConfig(layers=layers)).state_dict())


@lru_cache(maxsize=16)
def _semantic_to_wave_names(config: SemanticToWaveConfig) -> frozenset[str]:
    with torch.device("meta"):
        return frozenset(SemanticToWave(config).state_dict())


@lru_cache(maxsize=16)
def _semantic_to_mel_names(layers: int, blocks: int, text_blocks: int, *, adapters_only: bool) -> frozenset[str]:
    config = SemanticToMelConfig(layers=layers, flow_layers=blocks, flow_condition_layers=text_blocks)
    with torch.device("meta"):
        network = SemanticToMel(config)
    if not adapters_only:
        return frozenset(network.state_dict())
    buffers = {name for name, _ in network.named_buffers()}
    kept = [name for name in network.state_dict() if name in buffers or name.startswith(LORA_TRAINS)]
    adapted = [
        name.removesuffix(".weight")
        for name, parameter in network.named_parameters()
        if name.startswith(f"{WRAPPED}.") and name.removesuffix(".weight").endswith(FLOW_TARGETS)
    ]
    adapters = [f"{name}.{factor}.default.weight" for name in adapted for factor in ("lora_A", "lora_B")]
    return frozenset(re.sub(rf"^{WRAPPED}\.", f"{WRAPPED}.{WRAPPER}", name) for name in (*kept, *adapters))


def _of_safetensors(path: Path) -> FileDescription:
    """A file of ours: the weights of a voice, a Prompt, or an encoder of transformers."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = {shown(name): shown(value) for name, value in (file.metadata() or {}).items()}
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - a file, not a mapping
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
            dtypes = Counter(str(part.get_dtype()).lower() for part in slices.values())
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"{path} is a damaged safetensors file: {' '.join(str(error).split())[:200]}") from error
    is_voice = {"base_digest", "phase"} <= metadata.keys()
    said = metadata.get("release", "")
    step = metadata.get("step", "")
    return FileDescription(
        path=path,
        part=Part.VOICE_WEIGHTS if is_voice else Part.TENSORS,
        releases=(Release(said),) if said in {str(release) for release in Release} else (),
        evidence=(f"safetensors of ours: {metadata['phase']}",) if is_voice else ("safetensors",),
        dtypes=dict(sorted(dtypes.items())),
        tensors=len(shapes),
        values=sum(torch.Size(shape).numel() for shape in shapes.values()),
        training_paths={},
        steps=int(step) if step.isdecimal() and len(step) < 12 else None,
        metadata=metadata,
    )


def _start_of(path: Path) -> bytes:
    with open_file(path) as file:
        start = file.read(_START_BYTES)
    if not start:
        raise ValueError(f"{path} is empty (0 bytes); fetch it again")
    return start


def _is_safetensors(start: bytes) -> bool:
    return len(start) > 9 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 100_000_000


def _refuse_others(start: bytes, path: Path) -> None:
    """Name what is no file of torch's at all."""
    head = start[:512].lstrip().lower()
    if head.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path}: this is a pointer of git-lfs, not the file: fetch it (`git lfs pull`)")
    if head.startswith((b"<!doctype html", b"<html")):
        raise ValueError(f"{path}: this is a web page, not the file: a download went to a login or an error page")
    for magic, what in (
        (b"IwFl", "a search index of RVC (faiss)"),
        (b"IxF", "a search index of RVC (faiss)"),
        (b"GGUF", "a GGUF file of llama.cpp"),
        (b"RIFF", "a recording (WAV or similar)"),
        (b"fLaC", "a recording (FLAC)"),
        (b"\x1f\x8b", "a gzip archive; unpack it first"),
        (b"7z\xbc\xaf", "a 7z archive; unpack it first"),
        (b"Rar!", "a RAR archive; unpack it first"),
    ):
        if start.startswith(magic):
            raise ValueError(f"{path}: this is {what}, not a file of GPT-SoVITS")
    if path.suffix.lower() == ".onnx" or (start[:1] == b"\x08" and b"pytorch" in start[:64]):
        raise ValueError(f"{path}: this is an ONNX graph, which cannot be trained or taken over")
    if start[257:262] == b"ustar":
        raise ValueError(f"{path}: this is a tar archive, torch's format before 0.4; save it again with a newer torch")
    if all(byte >= 32 or byte in b"\t\r\n" for byte in start[:256]) and start[:2] not in (*_HEADERS, b"PK"):
        raise ValueError(f"{path}: this is text, not a checkpoint")
    if start[:2] not in (*_HEADERS, b"PK") and start[:1] != b"\x80":
        raise ValueError(f"{path}: this is no file of torch's (it begins with {start[:4].hex(' ')})")


def _refuse_families(content: Any, path: Path) -> None:
    """Name files of neighbours that share the ancestry and not the networks."""
    if not isinstance(content, dict):
        return
    tables = [table for table in (content.get("weight"), content.get("model")) if isinstance(table, dict)]
    names = [str(name) for table in tables for name in table]
    if any(name.startswith(("enc_p.emb_phone.", "enc_p.emb_pitch.")) for name in names) or (
        isinstance(content.get("config"), list | tuple) and "weight" in content
    ):
        raise ValueError(
            f"{path}: this is a voice of RVC (voice conversion), which is not GPT-SoVITS; it cannot be used"
        )
    if any(name.startswith(("f0_decoder.", "emb_uv.", "enc_p.f0_emb.")) for name in names):
        raise ValueError(
            f"{path}: this is a voice of so-vits-svc (singing conversion), not GPT-SoVITS; it cannot be used"
        )
    if "emb_g.weight" in names and not any(name.startswith("enc_p.mrte.") for name in names):
        raise ValueError(f"{path}: this is a network of VITS or so-vits-svc, not GPT-SoVITS; it cannot be used")


def _paths_of(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """The entries of `config` that are paths, by their dotted names."""
    found: dict[str, str] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found |= _paths_of(value, f"{prefix}{name}.")
        elif isinstance(value, str) and value and (_PATHS.search(name) or "/" in value or "\\" in value):
            found[shown(f"{prefix}{name}")] = shown(value)
    return found


def _number(text: str | None, pattern: str) -> int | None:
    found = re.search(pattern, text or "")
    return int(found[1]) if found and len(found[1]) < 12 else None
