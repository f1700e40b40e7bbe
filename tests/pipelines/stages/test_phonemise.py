from dataclasses import replace
from pathlib import Path

import pytest

from gsv_core.text.lexicon import Lexicon
from gsv_core.text.symbols import inventory
from pipelines.rows import Rejection, SpokenClip
from pipelines.stages.phonemise import PhonemiseUtterances
from tests.pipelines.conftest import Travelled


def phonemised(row: SpokenClip, text: str, language: str, symbols: str = "v2") -> SpokenClip | Rejection:
    said = replace(row, utterance=replace(row.utterance, text=text, language=language))
    (result,) = PhonemiseUtterances(symbols=symbols).process(said, None)
    return result


def test_a_good_clip_gets_phonemes_and_nothing_else_changes(travelled: Travelled) -> None:
    for before, after in zip(travelled.spoken, travelled.phonemised, strict=True):
        utterance = after.utterance
        symbols = inventory("v2")
        assert utterance.phonemes
        assert tuple(symbols[number] for number in utterance.phoneme_ids) == utterance.phonemes
        assert sum(span.num_phonemes for span in utterance.spans) == len(utterance.phonemes)
        assert utterance.normal_text
        unsaid = {"normal_text": None, "phonemes": (), "phoneme_ids": (), "phonemes_per_character": (), "spans": ()}
        assert utterance.dropped is None
        assert replace(utterance, **unsaid) == before.utterance  # type: ignore[arg-type]
        assert after.flac == before.flac


@pytest.mark.parametrize(
    ("text", "language"), [("你好，世界。", "zh"), ("はい、そうです。", "ja"), ("안녕하세요.", "ko")]
)
def test_other_languages_are_read_by_their_own_front_end(spoken: SpokenClip, text: str, language: str) -> None:
    row = phonemised(spoken, text, language)
    assert isinstance(row, SpokenClip)
    assert {span.language for span in row.utterance.spans} == {language}
    if language == "zh":
        assert sum(row.utterance.spans[0].phonemes_per_character) == len(row.utterance.phonemes)


def test_the_ids_follow_the_inventory_of_the_base(spoken: SpokenClip) -> None:
    for symbols in ("v1", "v2"):
        row = phonemised(spoken, "Good morning.", "en", symbols)
        assert isinstance(row, SpokenClip)
        names = inventory(symbols)
        assert tuple(names[number] for number in row.utterance.phoneme_ids) == row.utterance.phonemes


@pytest.mark.parametrize(
    ("text", "language", "reason"),
    [("… !? —", "en", "unspeakable"), ("", "en", "unspeakable"), ("Buenos días", "es", "unsupported_language")],
)
def test_what_cannot_be_said_is_rejected_with_its_place(
    spoken: SpokenClip, text: str, language: str, reason: str
) -> None:
    row = phonemised(spoken, text, language)
    assert isinstance(row, Rejection)
    assert (row.stage, row.reason, row.row_id) == ("phonemise", reason, spoken.utterance.clip_id)
    assert (row.start_sample, row.num_samples) == (spoken.utterance.start_sample, spoken.utterance.num_samples)
    assert row.detail


def test_characters_without_a_sound_are_kept_in_the_manifest(spoken: SpokenClip) -> None:
    row = phonemised(spoken, "你好 שלום 世界", "zh")
    assert isinstance(row, SpokenClip)
    assert set(row.utterance.dropped or "") == set("שלום")
    whole = phonemised(spoken, "你好，世界。", "zh")
    assert isinstance(whole, SpokenClip)
    assert whole.utterance.dropped is None


def test_a_wrong_setup_is_no_rejection(spoken: SpokenClip, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_dictionary(*_: object, **__: object) -> None:
        raise ValueError("no Open JTalk dictionary")

    monkeypatch.setattr("pipelines.stages.phonemise.phonemise", no_dictionary)
    with pytest.raises(ValueError, match="no Open JTalk dictionary"):
        phonemised(spoken, "はい。", "ja")


def test_another_model_than_the_one_planned_with_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"g2pW\.onnx.* run `gsv models pull text`"):
        PhonemiseUtterances(polyphones=str(tmp_path), polyphones_digest="0" * 16).load()
    assert PhonemiseUtterances().load() is None
    named = PhonemiseUtterances(polyphones="anywhere", polyphones_digest="0" * 16).fingerprint()
    assert named == {**PhonemiseUtterances().fingerprint(), "polyphones": "0" * 16}


def test_twice_the_same_phonemes(travelled: Travelled) -> None:
    again = [result for row in travelled.spoken for result in PhonemiseUtterances().process(row, None)]
    assert [row.utterance for row in again if isinstance(row, SpokenClip)] == [
        row.utterance for row in travelled.phonemised
    ]


def test_a_voice_s_own_words_are_said_as_its_lexicon_says(spoken: SpokenClip) -> None:
    words = Lexicon.parse(b"morning\tM AO1 N\n")
    said = replace(spoken, utterance=replace(spoken.utterance, text="Good morning.", language="en"))
    mine, other = ({spoken.utterance.voice: words}, {"somebody else": words})
    (changed,), (same,), (plain,) = (
        PhonemiseUtterances(lexicons=lexicons).process(said, None) for lexicons in (mine, other, {})
    )
    assert isinstance(changed, SpokenClip)
    assert isinstance(same, SpokenClip)
    assert isinstance(plain, SpokenClip)
    assert changed.utterance.phonemes[-4:] == ("M", "AO1", "N", ".")
    assert same.utterance == plain.utterance != changed.utterance
    # The recordings carry the digest of their words; the stage's own fingerprint holds for every voice.
    assert PhonemiseUtterances(lexicons=mine).fingerprint() == PhonemiseUtterances().fingerprint()
