"""Our Examples as GPT-SoVITS's training reads them, and what is taken of such a folder on the way back."""

import io
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.interchange import read_dataset, write_dataset
from pipelines.rows import RATE_HZ, Utterance
from pipelines.shard_reader import StoredExample


def example(number: int, *, text: str = "你好，世界", language: str = "zh", sv: bool = True) -> StoredExample:
    random = np.random.default_rng(number)
    phonemes = ("n", "i2", "h", "ao3", ",")
    codes = random.integers(-32768, 32768, 2 * RATE_HZ)
    arrays = {
        "content": random.standard_normal((100, 768)).astype(np.float16),
        "semantic": random.integers(0, 1024, 50).astype(np.int16),
        **({"bert": random.standard_normal((5, 1024)).astype(np.float16)} if language == "zh" else {}),
        **({"sv": random.standard_normal(20480).astype(np.float16)} if sv else {}),
    }
    utterance = Utterance(
        clip_id=f"{number:020x}",
        recording_id="r",
        voice="anna",
        start_sample=0,
        num_samples=2 * RATE_HZ,
        text=text,
        language=language,
        confidence=None,
        normal_text="你好,",
        phonemes=phonemes,
        phonemes_per_character=(2, 2, 1) if language == "zh" else (),
    )
    return StoredExample(
        utterance=utterance,
        description={},
        flac=b"",
        wave=(codes / 32768).astype(np.float32),
        rate_hz=RATE_HZ,
        arrays=arrays,
    )


def test_the_folder_holds_what_upstream_reads(tmp_path: Path) -> None:
    mandarin, english = example(1), example(2, text="hi | there\n", language="en")
    assert write_dataset([mandarin, english], tmp_path) == 2
    name, other = f"{1:020x}.wav", f"{2:020x}.wav"
    assert (tmp_path / "2-name2text.txt").read_text(encoding="utf-8") == (
        f"{name}\tn i2 h ao3 ,\t[2, 2, 1]\t你好,\n{other}\tn i2 h ao3 ,\tNone\t你好,\n"
    )
    heading, *tokens = (tmp_path / "6-name2semantic.tsv").read_text(encoding="utf-8").splitlines()
    assert heading == "item_name\tsemantic_audio"
    assert tokens[0] == f"{name}\t{' '.join(map(str, mandarin.arrays['semantic']))}"
    content = torch.load(tmp_path / "4-cnhubert" / f"{name}.pt", weights_only=True)
    assert (content.shape, content.dtype) == ((1, 768, 100), torch.float16)
    assert np.array_equal(content[0].T.numpy(), mandarin.arrays["content"])
    vectors = torch.load(tmp_path / "3-bert" / f"{name}.pt", weights_only=True)
    assert np.array_equal(vectors.T.numpy(), mandarin.arrays["bert"])
    assert not (tmp_path / "3-bert" / f"{other}.pt").exists()
    speaker = torch.load(tmp_path / "7-sv_cn" / f"{name}.pt", weights_only=True)
    assert (speaker.shape, speaker.dtype) == ((1, 20480), torch.float16)
    with wave.open(io.BytesIO((tmp_path / "5-wav32k" / name).read_bytes())) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (32_000, 1, 2)
        codes = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    assert np.array_equal(codes, np.rint(mandarin.wave * 32768).astype(np.int16))


def test_twice_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write_dataset([example(1)], tmp_path / folder)
    one, two = (
        {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (tmp_path / "one", tmp_path / "two")
    )
    assert len(one) == 7
    assert one == two


def test_text_and_language_come_back_and_no_pickle_is_opened(tmp_path: Path) -> None:
    write_dataset([example(1), example(2, text="hi | there", language="en")], tmp_path)
    for path in tmp_path.rglob("*.pt"):
        path.write_bytes(b"\x80\x04cos\nsystem\n")
    said = read_dataset(tmp_path)
    assert [(entry.text, entry.language) for entry in said] == [("你好，世界", "zh"), ("hi there", "en")]
    assert [entry.path.name for entry in said] == [f"{1:020x}.wav", f"{2:020x}.wav"]
    # A folder of upstream's own has the normalised text, and no language.
    (tmp_path / "dataset.list").unlink()
    assert [(entry.text, entry.language) for entry in read_dataset(tmp_path)] == [("你好,", None)] * 2


def test_a_mixed_folder_or_an_empty_one_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 of 2 clips have no speaker vector"):
        write_dataset([example(1), example(2, sv=False)], tmp_path / "mixed")
    with pytest.raises(ValueError, match="nothing of the voice is kept"):
        write_dataset([], tmp_path / "empty")
    assert not list((tmp_path / "empty").rglob("*.txt"))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("a.wav|anna|ZH", "line 2: expected path"),
        ("a.wav|anna|xx|text", "line 2: language is 'xx'"),
        ("../outside.wav|anna|en|text", "lies outside"),
        ("link.wav|anna|en|text", "lies outside"),
        ("none.wav|anna|en|text", "there is no recording 'none.wav'"),
        ("a.wav|anna|en|  ", "line 2: no text"),
        ("a\0.wav|anna|en|text", "holds a NUL"),
    ],
)
def test_a_wrong_line_is_refused_by_its_number(tmp_path: Path, line: str, said: str) -> None:
    folder = tmp_path / "dataset"
    folder.mkdir()
    (folder / "a.wav").write_bytes(b"a")
    (tmp_path / "outside.wav").write_bytes(b"a")
    (folder / "link.wav").symlink_to(tmp_path / "outside.wav")
    (folder / "my.list").write_text(f"a.wav|anna|JP|text\n{line}\n")
    with pytest.raises(ValueError, match=said):
        read_dataset(folder / "my.list")


def test_what_is_no_dataset_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"neither dataset\.list nor 2-name2text\.txt"):
        read_dataset(tmp_path)
    with pytest.raises(ValueError, match="no such folder or list"):
        read_dataset(tmp_path / "none")
