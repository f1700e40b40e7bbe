"""Examples to and from the folder that GPT-SoVITS's own training scripts read.

    2-name2text.txt       name, phonemes, phonemes per character, normalised text; parted by tabs
    3-bert/NAME.pt        (1024, P) float16, text vectors; where the text has a Mandarin span
    4-cnhubert/NAME.pt    (1, 768, L) float16, content features
    5-wav32k/NAME         32 kHz, 16-bit, mono WAV
    6-name2semantic.tsv   name, semantic tokens; under a line of headings
    7-sv_cn/NAME.pt       (1, 20480) float16, speaker vector; only with a Pro base
    dataset.list          5-wav32k/NAME|voice|language|text

NAME is `<clip_id>.wav`. The last file is read by upstream's preparing scripts, not by its training; it holds what the
others lost: the text as it was, and its language. On the way back only audio, text and language are taken: everything
else belongs to models that may not be ours, and a `.pt` is never opened.
"""

import io
import wave as wave_file
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipelines.shard_reader import StoredExample

TEXTS, TOKENS, WAVES, LIST = "2-name2text.txt", "6-name2semantic.tsv", "5-wav32k", "dataset.list"
_VECTORS, _CONTENT, _SPEAKER = "3-bert", "4-cnhubert", "7-sv_cn"
_LANGUAGES = {"zh": "ZH", "ja": "JA", "en": "EN", "ko": "KO", "yue": "YUE"}
_READ_LANGUAGES = {"zh": "zh", "jp": "ja", "ja": "ja", "en": "en", "ko": "ko", "yue": "yue"}
_LONGEST_LIST_BYTES = 256 << 20


@dataclass(frozen=True, kw_only=True)
class SaidFile:
    """A recording of a dataset, with what is said in it. `language` is None where the dataset does not say."""

    path: Path
    text: str
    language: str | None


def write_dataset(examples: Iterable[StoredExample], folder: Path) -> int:
    """Write `examples` of one voice into the new `folder`; how many they were.

    Raises:
        ValueError: there are none, or one of them has no speaker vector where others have one.
    """
    texts, tokens, listed, with_speaker = [], ["item_name\tsemantic_audio"], [], 0
    for name in (_VECTORS, _CONTENT, WAVES):
        (folder / name).mkdir(parents=True)
    for example in examples:
        utterance = example.utterance
        name = f"{utterance.clip_id}.wav"
        aligned = list(utterance.phonemes_per_character) or None
        texts.append(f"{name}\t{' '.join(utterance.phonemes)}\t{aligned}\t{_one_line(utterance.normal_text or '')}")
        tokens.append(f"{name}\t{' '.join(map(str, example.arrays['semantic'].tolist()))}")
        language = _LANGUAGES.get(utterance.language, utterance.language.upper())
        listed.append(f"{WAVES}/{name}|{utterance.voice}|{language}|{_one_line(utterance.text.replace('|', ' '))}")
        _save(example.arrays["content"].T[None], folder / _CONTENT / f"{name}.pt")
        if "bert" in example.arrays:
            _save(example.arrays["bert"].T, folder / _VECTORS / f"{name}.pt")
        if "sv" in example.arrays:
            with_speaker += 1
            (folder / _SPEAKER).mkdir(exist_ok=True)
            _save(example.arrays["sv"][None], folder / _SPEAKER / f"{name}.pt")
        (folder / WAVES / name).write_bytes(_wav(example.wave, example.rate_hz))
    if not texts:
        raise ValueError("no clips to write: nothing of the voice is kept")
    if with_speaker not in (0, len(texts)):
        raise ValueError(
            f"{len(texts) - with_speaker} of {len(texts)} clips have no speaker vector; prepare them again"
        )
    for name, lines in ((TEXTS, texts), (TOKENS, tokens), (LIST, listed)):
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    return len(texts)


def read_dataset(path: Path) -> list[SaidFile]:
    """The recordings of a dataset: a folder as above, or a `.list` of upstream's with paths relative to it.

    A folder without `dataset.list` (upstream's own) has its texts normalised only, and says no language.

    Raises:
        ValueError: it is neither, a line cannot be understood, or a recording it names is missing or lies outside.
    """
    if path.is_dir():
        listed, texts = path / LIST, path / TEXTS
        if listed.is_file():
            return _from_list(listed, path)
        if not texts.is_file():
            raise ValueError(f"{path}: neither {LIST} nor {TEXTS} in it; give a GPT-SoVITS experiment's folder")
        return _from_texts(texts, path)
    if not path.is_file():
        raise ValueError(f"{path}: no such folder or list")
    return _from_list(path, path.parent)


def _from_list(path: Path, root: Path) -> list[SaidFile]:
    found = []
    for number, line in _lines(path):
        cells = line.split("|", 3)
        if len(cells) != 4:
            raise ValueError(f"{path}, line {number}: expected path|speaker|language|text")
        language = _READ_LANGUAGES.get(cells[2].strip().lower())
        if language is None:
            raise ValueError(
                f"{path}, line {number}: language is {cells[2][:20]!r}, expected {', '.join(_READ_LANGUAGES)}"
            )
        place = _inside(root, cells[0].strip(), f"{path}, line {number}")
        found.append(SaidFile(path=place, text=_said(cells[3], path, number), language=language))
    return found


def _from_texts(path: Path, root: Path) -> list[SaidFile]:
    found = []
    for number, line in _lines(path):
        cells = line.split("\t")
        if len(cells) != 4:
            raise ValueError(f"{path}, line {number}: expected name, phonemes, phonemes per character and text")
        place = _inside(root, f"{WAVES}/{cells[0]}", f"{path}, line {number}")
        found.append(SaidFile(path=place, text=_said(cells[3], path, number), language=None))
    return found


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        if path.stat().st_size > _LONGEST_LIST_BYTES:
            raise ValueError(f"{path}: longer than {_LONGEST_LIST_BYTES} bytes; give a part of it")
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8") from error
    # Not splitlines(): a text may hold U+2028 and its like.
    return ((number, line.rstrip("\r")) for number, line in enumerate(text.split("\n"), start=1) if line.strip())


def _inside(root: Path, name: str, where: str) -> Path:
    """The file of that name below `root`; links and `..` do not lead out of it."""
    if "\0" in name:
        raise ValueError(f"{where}: the file name holds a NUL")
    place = (root / name).resolve()
    if not place.is_relative_to(root.resolve()):
        raise ValueError(f"{where}: {name[:80]!r} lies outside {root}; copy the recording in")
    if not place.is_file():
        raise ValueError(f"{where}: there is no recording {name[:80]!r}")
    return place


def _said(text: str, path: Path, number: int) -> str:
    said = text.strip()
    if not said:
        raise ValueError(f"{path}, line {number}: no text")
    return said


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _save(array: np.ndarray, path: Path) -> None:
    """A tensor as torch writes it, the same bytes every time."""
    buffer = io.BytesIO()
    # The name of the archive's folder follows the file's; a buffer has none, so copies are equal.
    torch.save(torch.from_numpy(np.ascontiguousarray(array)), buffer)
    path.write_bytes(buffer.getvalue())


def _wav(wave: np.ndarray, rate_hz: int) -> bytes:
    buffer = io.BytesIO()
    with wave_file.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(np.clip(np.rint(wave * 32768.0), -32768, 32767).astype("<i2").tobytes())
    return buffer.getvalue()
