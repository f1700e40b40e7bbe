"""Tables of corrections: what they change, what they leave, and what of them is refused with the number of its line."""

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.corrections import COLUMNS, Correction, Corrections, write_table
from pipelines.rows import Source, recording_id
from pipelines.sources import gather
from pipelines.storage import LocalStorage
from pipelines.units import Unit

CLIP, OTHER, RECORDING = "a" * 20, "b" * 20, "c" * 20


def read(tmp_path: Path, text: str | bytes) -> Corrections:
    path = tmp_path / "corrections.tsv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return Corrections.read(path)


def line(clip: str = CLIP, **cells: str) -> dict[str, str]:
    before = {"text": "as it was", "language": "en"}
    known = {"clip_id": clip, "recording": RECORDING, "text_before": "as it was", "language_before": "en"}
    return known | before | cells


def table(*lines: dict[str, str]) -> str:
    return write_table(lines)


def test_a_table_as_it_was_written_changes_nothing(tmp_path: Path) -> None:
    assert not read(tmp_path, table(line(), line(OTHER)))


@pytest.mark.parametrize(
    ("cells", "correction"),
    [
        ({"text": "as it is"}, Correction(clip_id=CLIP, recording_id=RECORDING, text="as it is", language="en")),
        ({"language": "ko"}, Correction(clip_id=CLIP, recording_id=RECORDING, text="as it was", language="ko")),
        ({"verdict": "keep"}, Correction(clip_id=CLIP, recording_id=RECORDING, text="as it was", language="en")),
        ({"verdict": "Reject", "text": ""}, Correction(clip_id=CLIP, recording_id=RECORDING, rejected=True)),
    ],
)
def test_what_was_edited_is_a_correction(tmp_path: Path, cells: dict[str, str], correction: Correction) -> None:
    assert read(tmp_path, table(line(**cells), line(OTHER))).by_clip == {CLIP: correction}


@pytest.mark.parametrize("delimiter", ["\t", ",", ";"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_spreadsheet_may_save_it_as_it_likes(tmp_path: Path, delimiter: str, encoding: str) -> None:
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, delimiter=delimiter)
    writer.writeheader()
    writer.writerow(line(text='说 "three", a; b'))
    corrections = read(tmp_path, file.getvalue().encode(encoding))
    assert corrections.by_clip[CLIP].text == '说 "three", a; b'


@settings(deadline=None, max_examples=60)
@given(text=st.text(st.characters(exclude_categories=("C", "Z")), min_size=1), clip=st.sampled_from([CLIP, OTHER]))
def test_any_text_comes_back_as_it_was_and_is_no_formula(
    tmp_path_factory: pytest.TempPathFactory, text: str, clip: str
) -> None:
    written = table(line(clip, text=text, verdict="keep"))
    cell = list(csv.reader(io.StringIO(written), "excel-tab"))[1][COLUMNS.index("text")]
    assert cell[0] not in "=+-@"
    corrections = read(tmp_path_factory.mktemp("table"), written)
    assert corrections.by_clip[clip].text == text
    assert read(tmp_path_factory.mktemp("table"), corrections.table) == corrections


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("clip_id\ttext\n", "line 1: no column recording"),
        ("", "line 1: no column clip_id"),
        (table(line(clip="../../etc")), "line 2: clip_id is '../../etc'"),
        (table(line(), line(verdict="perhaps")), "line 3: verdict is 'perhaps'"),
        (table(line(language="xx")), "line 2: language is 'xx'"),
        (table(line(text="")), "line 2: no text"),
        (table(line(text="a\u0007b")), "line 2: the text holds the character U\\+0007"),
        (table(line(text="a" * 5000)), "line 2: the text has 5000 characters"),
        (table(line(text="x"), line(text="y")), "line 3: clip a+ was corrected in line 2"),
        (table(line(text="x")) + '"', "line 2: not readable as a table"),
        (table(line(text="x")).rstrip("\n") + "\tmore\tcells\n", "line 2: more cells than headings"),
        (b"clip_id\xff", "not UTF-8"),
    ],
)
def test_a_wrong_table_is_refused_by_its_line(tmp_path: Path, text: str | bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read(tmp_path, text)


def test_nothing_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No such file"):
        Corrections.read(tmp_path / "none.tsv")


def test_a_correction_is_of_one_recording_alone_and_the_voice_s_table_counts_first(tmp_path: Path) -> None:
    root = tmp_path / "recordings"
    (root / "anna").mkdir(parents=True)
    for name in ("one", "two"):
        (root / "anna" / f"{name}.wav").write_bytes(name.encode())
    corpus = LocalStorage(tmp_path / "corpus")
    before = {source.uri: source for source in gather(root, corpus).sources}
    one = next(source for uri, source in before.items() if uri.endswith("one.wav"))
    recording = recording_id("anna", one.digest)
    (root / "corrections.tsv").write_text(table(line(recording=recording, text="for all")))
    (root / "anna" / "corrections.tsv").write_text(table(line(recording=recording, text="the voice's")))
    handed_in = gather(root, corpus)
    assert handed_in.corrections.by_clip[CLIP].text == "the voice's"
    changed = [source for source in handed_in.sources if source != before[source.uri]]
    assert [source.uri for source in changed] == [one.uri]
    assert replace(changed[0], corrections=None) == one
    assert Unit.of(changed, "config").unit_id != Unit.of([one], "config").unit_id
    beside = tmp_path / "beside.tsv"
    beside.write_text(table(line(recording=recording, text="named")))
    assert gather(root, corpus, corrections=Corrections.read(beside)).corrections == handed_in.corrections


def test_a_unit_without_corrections_keeps_its_id() -> None:
    source = Source(voice="anna", uri="/a.wav", digest="d" * 64, size_bytes=1)
    assert Unit.of([source], "config").unit_id == "dda8527c30fdad1567a1"


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "recordings"
    (root / "anna").mkdir(parents=True)
    (root / "anna" / "one.wav").write_bytes(b"one")
    (tmp_path / "outside.tsv").write_text(table(line(text="x")))
    (root / "anna" / "corrections.tsv").symlink_to(tmp_path / "outside.tsv")
    with pytest.raises(ValueError, match="the link leaves its folder"):
        gather(root, LocalStorage(tmp_path / "corpus"))
