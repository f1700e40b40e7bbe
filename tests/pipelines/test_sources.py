import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gsv_core.text.lexicon import Lexicon
from pipelines.sources import HandedIn, gather
from pipelines.storage import LocalStorage
from pipelines.voice_card import read_card, stored_lexicon


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "recordings"
    folder.mkdir()
    return folder


def put(path: Path, content: bytes | str = b"audio") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def look(root: Path, **options: object) -> HandedIn:
    return gather(root, LocalStorage(root.parent / "corpus"), **options)


def test_each_sub_folder_is_a_voice_with_what_its_card_says(root: Path) -> None:
    put(root / "anna" / "monday.wav", b"1")
    put(root / "anna" / "week 2" / "TUESDAY.FLAC", b"2")
    put(root / "anna" / "monday.txt", "Good morning.")
    put(root / "anna" / "voice.yaml", "language: en\nlicence: CC0\nconsent: {by: Anna, reference: letter 7}\n")
    put(root / "ben" / "a.mp3", b"3")
    found = look(root, language="ko")
    anna, ben = found.cards
    assert (anna.voice, anna.language, anna.licence, ben.language) == ("anna", "en", "CC0", "ko")
    assert anna.consent_id
    assert ben.consent_id is None
    by_name = {Path(source.uri).name: source for source in found.sources}
    assert by_name["monday.wav"].transcript == "Good morning."
    assert by_name["TUESDAY.FLAC"].transcript is None
    assert by_name["a.mp3"].language == "ko"
    assert by_name["monday.wav"].consent_id == anna.consent_id


def test_a_subtitle_is_preferred_to_plain_text(root: Path) -> None:
    put(root / "anna" / "a.wav")
    put(root / "anna" / "a.txt", "text")
    put(root / "anna" / "a.srt", "1\n00:00:00,000 --> 00:00:01,000\ntext\n")
    (source,) = look(root).sources
    assert source.transcript_format == "srt"


def test_the_same_bytes_are_one_source_with_copies(root: Path) -> None:
    put(root / "anna" / "a.wav", b"same")
    put(root / "anna" / "b.wav", b"same")
    put(root / "anna" / "b.txt", "only the second has a text")
    put(root / "ben" / "a.wav", b"same")
    found = look(root)
    anna, ben = found.sources
    assert Path(anna.uri).name == "b.wav"
    assert [Path(copy).name for copy in anna.copies] == ["a.wav"]
    assert ben.copies == ()


def test_strange_files_are_named_or_passed_over(root: Path) -> None:
    put(root / "anna" / ".hidden.wav")
    put(root / "anna" / "notes.pdf")
    put(root / "anna" / "folder.wav" / "keep.txt")
    put(root / "anna" / "录音 (最终) – naïve ‘take’ & 100%.wav", b"good")
    put(root / "outside.txt")
    put(root.parent / "secret.wav")
    (root / "anna" / "loop").symlink_to(root / "anna")
    (root / "anna" / "self.wav").symlink_to("self.wav")
    (root / "anna" / "dangling.wav").symlink_to("nowhere.wav")
    (root / "anna" / "escape.wav").symlink_to(root.parent / "secret.wav")
    found = look(root)
    assert [Path(source.uri).name for source in found.sources] == ["录音 (最终) – naïve ‘take’ & 100%.wav"]
    assert {(Path(entry.uri).name, entry.reason) for entry in found.rejections} == {
        ("self.wav", "broken_link"),
        ("dangling.wav", "broken_link"),
        ("escape.wav", "link_outside"),
    }


def test_a_name_that_is_not_utf8_is_refused_by_name(root: Path) -> None:
    folder = root / "anna"
    folder.mkdir()
    put(folder / os.fsdecode(b"bad\xff.wav"))
    (rejection,) = look(root).rejections
    assert rejection.reason == "bad_name"
    assert "bad\\xff.wav" in rejection.uri


def test_the_inventory_saves_reading_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(root / "anna" / "a.wav", b"1")
    first = look(root)
    monkeypatch.setattr("pipelines.inventory.hashlib.file_digest", lambda *_: pytest.fail("read again"))
    assert look(root).sources == first.sources


def test_a_changed_file_is_read_again(root: Path) -> None:
    path = put(root / "anna" / "a.wav", b"1")
    (before,) = look(root).sources
    put(path, b"2")
    os.utime(path, ns=(1, 1))
    (after,) = look(root).sources
    assert before.digest != after.digest


@pytest.mark.parametrize("what", ["missing", "empty", "folder of text", "picture"])
def test_nothing_to_do_is_an_error_with_a_remedy(root: Path, what: str) -> None:
    place = root
    if what == "missing":
        place = root / "nowhere"
    elif what == "folder of text":
        put(root / "anna" / "a.txt")
    elif what == "picture":
        place = put(root / "a.png")
    with pytest.raises(ValueError, match=r"sub-folder|expected a folder"):
        look(place)


def test_tables_of_every_kind_give_the_same_sources(root: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    put(root / "a.wav", b"1")
    put(root / "b.wav", b"2")
    rows = [
        {"voice": "anna", "uri": "a.wav", "language": "en", "transcript": 'one, "two"'},
        {"voice": "ben", "uri": str(root / "b.wav"), "language": "zh", "transcript": "a|b"},
    ]
    csv = put(root / "t.csv", 'voice,uri,language,transcript\nanna,a.wav,en,"one, ""two"""\nben,b.wav,zh,a|b\n')
    import json

    jsonl = put(root / "t.jsonl", "\n".join(json.dumps(row) for row in rows) + "\n\n")
    parquet = root / "t.parquet"
    pq.write_table(pa.Table.from_pylist(rows), parquet)
    listing = put(root / "t.list", 'a.wav|anna|EN|one, "two"\nb.wav|ben|zh|a|b\n')
    found = [look(table).sources for table in (csv, jsonl, parquet, listing)]
    assert found[0] == found[1] == found[2] == found[3]
    assert [source.transcript for source in found[0]] == ['one, "two"', "a|b"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", "a,b\n1,2\n"),
        ("t.jsonl", "{broken\n"),
        ("t.jsonl", "[1]\n"),
        ("t.list", "only|three|parts\n"),
        ("t.parquet", "no parquet"),
    ],
)
def test_a_broken_table_is_named(root: Path, name: str, content: str) -> None:
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        look(put(root / name, content))


@pytest.mark.parametrize(
    "content",
    ["- a list", "language: [", "consent: yes", "pronunciation: posh", "!!python/object/apply:os.system ['true']"],
)
def test_a_broken_card_is_named_and_nothing_in_it_runs(tmp_path: Path, content: str) -> None:
    put(tmp_path / "voice.yaml", content)
    with pytest.raises(ValueError, match="voice"):
        read_card(tmp_path, "anna")


def test_a_reference_is_a_file_of_the_folder_and_known_by_its_bytes(root: Path) -> None:
    put(root / "anna" / "a.wav", b"1")
    put(root / "anna" / "known" / "only her.wav", b"2")
    put(root / "anna" / "voice.yaml", "reference: known/only her.wav\n")
    put(root / "ben" / "a.wav", b"3")
    found = look(root)
    anna, ben = found.cards
    assert (anna.reference, ben.reference) == ("known/only her.wav", None)
    assert anna.reference_digest == hashlib.sha256(b"2").hexdigest()
    assert found.references == {"anna": root / "anna" / "known" / "only her.wav"}


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("../secret.wav", "outside the voice's folder"),
        ("/etc/hostname", "outside the voice's folder"),
        ("link.wav", "outside the voice's folder"),
        ("gone.wav", "no such file"),
        (".", "no such file"),
        ("[a.wav]", "must be one value"),
        ('"a\\0b.wav"', "cannot be read"),
        ("x" * 5_000, "cannot be read"),
    ],
)
def test_a_reference_that_cannot_be_used_is_named_before_any_work(root: Path, reference: str, said: str) -> None:
    put(root / "secret.wav")
    put(root / "anna" / "a.wav")
    (root / "anna" / "link.wav").symlink_to(root / "secret.wav")
    put(root / "anna" / "voice.yaml", f"reference: {reference}\n")
    with pytest.raises(ValueError, match=said):
        look(root)


@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=200))
def test_any_bytes_in_a_card_or_a_list_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    folder = tmp_path_factory.mktemp("voice")
    put(folder / "voice.yaml", content)
    put(folder / "t.list", content)
    for call in (lambda: read_card(folder, "anna"), lambda: look(folder / "t.list")):
        try:
            call()
        except ValueError:
            continue


def reasons(found: HandedIn) -> dict[str, str]:
    return {Path(rejection.uri).name: rejection.reason for rejection in found.rejections}


def test_a_transcript_that_is_a_link_out_of_the_folder_is_not_read(root: Path) -> None:
    secret = put(root.parent / "secret", "not for the corpus")
    put(root / "anna" / "a.wav")
    (root / "anna" / "a.txt").symlink_to(secret)
    found = look(root)
    assert not found.sources
    assert reasons(found) == {"a.wav": "link_outside"}


def test_a_transcript_too_long_to_be_one_is_a_rejection_and_not_forgotten(root: Path) -> None:
    put(root / "anna" / "a.wav")
    put(root / "anna" / "a.txt", b"a" * (4 << 20) + b"a")
    found = look(root)
    assert not found.sources
    assert "longer than" in found.rejections[0].detail


def test_a_linked_sub_folder_is_told(root: Path) -> None:
    put(root.parent / "elsewhere" / "b.wav")
    put(root / "anna" / "a.wav")
    (root / "anna" / "more").symlink_to(root.parent / "elsewhere")
    found = look(root)
    assert len(found.sources) == 1
    assert reasons(found) == {"more": "link_outside"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_closed_folders_and_transcripts_leave_the_other_voices_alone(root: Path) -> None:
    put(root / "anna" / "a.wav")
    put(root / "ben" / "inside" / "b.wav").parent.chmod(0)
    put(root / "cleo" / "c.wav")
    put(root / "cleo" / "c.txt", "text").chmod(0)
    put(root / "dan" / "d.wav")
    (root / "dan").chmod(0)
    try:
        found = look(root)
    finally:
        (root / "dan").chmod(0o700)
        (root / "ben" / "inside").chmod(0o700)
    assert [source.voice for source in found.sources] == ["anna"]
    assert reasons(found) == {"inside": "unreadable", "c.wav": "unreadable", "dan": "unreadable"}


def test_loose_files_of_the_working_folder_are_the_voice_of_its_name(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(root / "a.wav")
    monkeypatch.chdir(root)
    (card,) = look(Path(), language="en").cards
    assert card.voice == "recordings"


def test_two_folders_of_one_voice_are_one_voice(root: Path) -> None:
    put(root / "é" / "a.wav", b"1")
    put(root / "e\u0301" / "b.wav", b"2")
    put(root / "recordings" / "c.wav", b"3")
    put(root / "d.wav", b"4")
    found = look(root)
    assert sorted(card.voice for card in found.cards) == ["recordings", "é"]
    assert len(found.sources) == 4


def test_a_language_in_capitals_is_that_language(root: Path) -> None:
    put(root / "anna" / "a.wav")
    put(root / "anna" / "voice.yaml", "language: EN\n")
    assert look(root).sources[0].language == "en"


@pytest.mark.parametrize(
    "text",
    [
        "consent: {1: a, by: b}",
        "consent: {by: {deep: er}}",
        "a: &a [x, x]\nb: &b [*a, *a]\nlanguage: *b",
        "a: &a [x, x]\nconsent: {by: [*a, *a]}",
        "[" * 5000,
    ],
)
def test_a_card_with_nested_values_is_named(root: Path, text: str) -> None:
    put(root / "anna" / "a.wav")
    put(root / "anna" / "voice.yaml", text)
    with pytest.raises(ValueError, match=r"voice\.yaml"):
        look(root)


def test_a_line_separator_inside_json_text_ends_no_line(root: Path) -> None:
    put(root / "a.wav")
    table = put(root / "t.jsonl", '{"voice": "anna", "uri": "a.wav", "transcript": "one\u2028two"}\n')
    (source,) = look(table).sources
    assert source.transcript == "one\u2028two"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", "voice\nanna,too,many\n"),
        ("t.csv", "voice,uri,transcript\nanna,a.wav," + "long " * 40_000 + "\n"),
        ("t.jsonl", r'{"voice": "anna", "uri": "\ud800.wav"}'),
    ],
)
def test_a_table_that_cannot_be_read_is_named(root: Path, name: str, text: str) -> None:
    with pytest.raises(ValueError, match=name):
        look(put(root / name, text))


def test_a_nul_in_a_name_of_a_table_is_a_rejection(root: Path) -> None:
    put(root / "a.wav")
    table = put(root / "t.jsonl", '{"voice": "anna", "uri": "a.wav"}\n{"voice": "anna", "uri": "b\\u0000.wav"}\n')
    found = look(table)
    assert len(found.sources) == 1
    assert [rejection.reason for rejection in found.rejections] == ["bad_name"]


def test_a_table_with_only_a_language_still_finds_the_text_beside(root: Path) -> None:
    put(root / "a.wav")
    put(root / "a.txt", "beside")
    (source,) = look(put(root / "t.csv", "voice,uri,language\nanna,a.wav,EN\n")).sources
    assert (source.transcript, source.language) == ("beside", "en")


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.list"])
def test_an_empty_table_is_not_taken_for_a_folder(root: Path, name: str) -> None:
    with pytest.raises(ValueError, match="no row in it"):
        look(put(root / name, ""))


def test_a_lexicon_is_the_corpus_s_or_the_voice_s_and_the_voice_s_word_counts(root: Path, tmp_path: Path) -> None:
    put(root / "anna" / "a.wav", b"1")
    put(root / "ben" / "b.wav", b"2")
    put(root / "lexicon.tsv", "GSV\tJH IY1\nAda\tEY1 D AH0\n")
    put(root / "anna" / "lexicon.tsv", "GSV\tG IY1\n")
    shared = Lexicon.parse(b"Ada\tAA1 D AH0\nBo\tB OW1\n")
    words = look(root, lexicon=shared).lexicons
    assert {entry.word: entry.pronunciation for entry in words["anna"].entries} == {
        "GSV": "G IY1",
        "Ada": "EY1 D AH0",
        "Bo": "B OW1",
    }
    assert {entry.word: entry.pronunciation for entry in words["ben"].entries}["GSV"] == "JH IY1"
    (tmp_path / "bare" / "anna").mkdir(parents=True)
    put(tmp_path / "bare" / "anna" / "a.wav")
    bare = look(tmp_path / "bare")
    assert bare.lexicons == {}
    assert bare.sources[0].lexicon is None


def test_chinese_words_are_of_the_voice_s_language(root: Path) -> None:
    put(root / "wong" / "a.wav", b"1")
    put(root / "wong" / "voice.yaml", "language: yue\n")
    put(root / "wong" / "lexicon.tsv", "重慶\tcung4 hing3\n")
    assert [entry.language for entry in look(root).lexicons["wong"].entries] == ["yue"]


def test_a_recording_with_a_transcript_depends_on_the_words_in_it_alone(root: Path) -> None:
    put(root / "anna" / "said.wav", b"1")
    put(root / "anna" / "said.txt", "Hello Ada.")
    put(root / "anna" / "unheard.wav", b"2")

    def digests(words: str) -> dict[str, str | None]:
        put(root / "anna" / "lexicon.tsv", words)
        return {Path(source.uri).stem: source.lexicon for source in look(root).sources}

    before, after = digests("Ada\tEY1 D AH0\n"), digests("Ada\tEY1 D AH0\nBo\tB OW1\n")
    assert before["said"] == after["said"] is not None
    assert before["unheard"] != after["unheard"]
    assert digests("Ada\tAA1 D AH0\n")["said"] != before["said"]
    assert digests("Bo\tB OW1\n")["said"] is None


def test_a_lexicon_that_is_wrong_or_a_link_outside_is_refused_by_name(root: Path, tmp_path: Path) -> None:
    put(root / "anna" / "a.wav")
    place = put(root / "anna" / "lexicon.tsv", "Ada\tEY D\n")
    with pytest.raises(ValueError, match=r"anna.lexicon.tsv, line 1: 'EY' is no ARPAbet"):
        look(root)
    place.unlink()
    place.symlink_to(put(tmp_path / "secret.tsv", "Ada\tEY1\n"))
    with pytest.raises(ValueError, match="leaves its folder"):
        look(root)


def test_the_words_kept_beside_a_voice_s_shards_are_read_wherever_they_lie(tmp_path: Path) -> None:
    corpus = LocalStorage(tmp_path)
    assert not stored_lexicon(corpus, "anna")
    corpus.write("voices/anna/lexicon.tsv", b"Ray\tR AY1\n")
    assert stored_lexicon(corpus, "anna") == Lexicon.parse(b"Ray\tR AY1\n")
    corpus.write("voices/anna/lexicon.tsv", b"\xff")
    with pytest.raises(ValueError, match=r"voices/anna/lexicon\.tsv"):
        stored_lexicon(corpus, "anna")
