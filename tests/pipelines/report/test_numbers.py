"""`collect` reads what lies on the disk: right sums, the right run, the right units, null as None."""

import json

import pytest

from pipelines.engines.decoder import decode
from pipelines.report.numbers import Outcome, collect, record_outcomes
from tests.pipelines.report.made_corpus import ENGINES, make_corpus, tone


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("report") / "corpus")


@pytest.fixture(scope="module")
def numbers(corpus):
    return collect(corpus)


def _voice(numbers, name):
    return next(voice for voice in numbers.voices if voice.voice == name)


def test_lengths_add_up_and_old_units_do_not_count(numbers):
    ada = _voice(numbers, "ada")
    assert (ada.utterances, ada.recordings, ada.given_transcripts) == (14, 1, 7)
    assert ada.seconds_rejected == pytest.approx(5.0)
    assert ada.seconds_non_speech == pytest.approx(2.5)
    assert ada.seconds_in == pytest.approx(ada.seconds_kept + ada.seconds_rejected + ada.seconds_non_speech)
    assert sum(ada.languages.values()) == pytest.approx(ada.seconds_kept, abs=1e-6)
    assert numbers.total("seconds_in") == pytest.approx(sum(voice.seconds_in for voice in numbers.voices))
    assert numbers.digest == "d" * 64
    assert numbers.engines == ENGINES, "a run's names of engines, which carry versions, replace the config's"


def test_rejections_are_grouped_with_a_reason_a_length_and_an_example(numbers):
    groups = {group.reason: group for group in _voice(numbers, "ada").rejections}
    assert groups["low_snr"].seconds == pytest.approx(3.0)
    assert groups["low_snr"].examples == ("a.wav: 7.2 dB < 15",)
    assert groups["empty"].seconds is None
    linus = _voice(numbers, "linus")
    assert [group.examples for group in linus.rejections if group.reason == "unreadable"] == [("notes.mp3",)]
    assert linus.display_name == "Linus (radio)"
    over_all = {group.reason: group for group in numbers.rejections()}
    assert over_all["low_snr"].count == 3
    assert over_all["no_recogniser"].seconds == pytest.approx(6.0)


def test_a_missing_number_is_counted_not_invented(numbers):
    by_key = {entry.key: entry for entry in _voice(numbers, "ada").distributions}
    assert (len(by_key["quality"].values), by_key["quality"].missing) == (13, 1)
    assert by_key["quality"].engine == "dnsmos"
    assert by_key["snr_db"].engine is None
    assert by_key["character_error_rate"].values == ()


def test_the_finished_run_is_the_one_read(numbers):
    trained = _voice(numbers, "ada").trained
    assert trained.run_id == "7" * 20
    assert [pair.label for pair in trained.pairs if pair.best] == ["GPT 80 + SoVITS 80"]
    assert trained.best.numbers["score"] == pytest.approx(0.29)
    ceiling, base = trained.compared
    assert ceiling.numbers["score"] is None
    assert "word_error_rate" not in base.numbers
    assert len(trained.sentences) == 2
    assert trained.sentences[0].recognised == "the chi it and"
    assert trained.independent is False
    assert numbers.notes == ("The release nano is built from a seed: its speech is not speech.",)


def test_curves_are_in_order_and_a_repeated_step_counts_once(numbers):
    curves = {(curve.phase, curve.metric, curve.kind): curve for curve in _voice(numbers, "ada").trained.curves}
    held_out = curves["wave", "mel", "held_out"]
    assert [step for step, _ in held_out.points] == [20, 40, 60, 80]
    assert held_out.points[-1][1] == 30.0
    assert ("wave", "loudness", "held_out") not in curves
    assert len(curves["semantic", "cross_entropy", "train"].points) == 40


def test_selection_is_the_one_the_run_names(numbers):
    ada = _voice(numbers, "ada")
    assert ada.left_out == {"other_speaker": 1}
    assert 0 < ada.seconds_held_out < ada.seconds_selected < ada.seconds_kept


def test_states_without_a_job_follow_from_the_files(numbers):
    assert [(voice.voice, voice.state) for voice in numbers.voices] == [
        ("ada", "trained"),
        ("hostile", "prepared"),
        ("linus", "prepared"),
    ]


def test_samples_are_the_prompt_and_pairs_to_compare(numbers):
    samples = _voice(numbers, "ada").samples
    titles = [sample.title for sample in samples]
    assert titles == ["Prompt", "Recorded", "Spoken by the voice", "Recorded", "Spoken by the voice"]
    for sample in samples:
        assert sample.media_type == "audio/flac"
        assert sample.rate_hz == 32_000
    assert [sample.title for sample in _voice(numbers, "linus").samples] == ["Kept clip"] * 3


def test_samples_shrink_to_their_budget_all_alike():
    import io

    from pipelines.engines.flac import encode_flac
    from pipelines.report.listening import AudioSample, within_budget

    data = encode_flac(tone(4.0, 3000), 32_000)
    samples = [AudioSample(title=str(index), text="", language="en", data=data) for index in range(3)]
    whole = within_budget(samples, 10_000_000)
    assert sum(len(sample.data) for sample in whole) == 3 * len(data)
    tight = within_budget(samples, int(2.2 * len(data)))
    assert {sample.rate_hz for sample in tight} <= {24_000, 16_000}
    assert sum(len(sample.data) for sample in tight) <= int(2.2 * len(data))
    assert len(tight) == 3
    assert decode(io.BytesIO(tight[0].data)).wave.shape[0] == pytest.approx(4.0 * tight[0].rate_hz, abs=2)
    assert within_budget(samples, 100) == ()


def test_outcomes_stay_beside_the_report(tmp_path):
    corpus = make_corpus(tmp_path / "corpus")
    registered = Outcome(state="registered", run_id="7" * 20, model_name="gsv-ada", model_version="3")
    record_outcomes(corpus, {"forgotten": Outcome(state="registered")})
    broken, linus = Outcome(state="failed", reason="out of memory"), Outcome(state="too_little_data", reason="6 s kept")
    record_outcomes(corpus, {"ada": registered, "broken": broken, "linus": linus})
    numbers = collect(corpus)
    assert {voice.voice: voice.state for voice in numbers.voices} == {
        "ada": "registered",
        "broken": "failed",
        "hostile": "prepared",
        "linus": "too_little_data",
    }
    assert _voice(numbers, "ada").model_version == "3"
    assert _voice(numbers, "broken").recordings == 0
    assert json.loads((corpus / "report" / "outcomes.json").read_text())["broken"]["reason"] == "out of memory"
    assert (numbers.count("registered"), numbers.count("failed")) == (1, 1)


def test_no_corpus_is_said_with_what_makes_one(tmp_path):
    with pytest.raises(ValueError, match="no corpus here; `gsv prepare`"):
        collect(tmp_path)


def test_unknown_state_is_refused():
    with pytest.raises(ValueError, match="'splendid'"):
        Outcome(state="splendid")
