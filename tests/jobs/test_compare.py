"""The blind comparison: drawn fairly, used from the keyboard in a real browser, and its votes read back."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jobs.compare import CHOICES, Trial, compare, draw_trials, log_preference, page, read_votes
from jobs.register import register_voice
from jobs.scoring import Sentence
from jobs.tracking import Registry, Tracker
from jobs.workspace import Workspace
from pipelines.engines.decoder import decode
from pipelines.engines.flac import encode_flac
from tests.jobs.run_fixture import write_nano_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = '</bdi><script>alert(1)</script>" onfocus="alert(2)'


def sentence(number: int, text: str = "Good morning.") -> Sentence:
    return Sentence(name=f"en-{number}", text=text, language="en")


def wave(hz: float) -> tuple[np.ndarray, int]:
    return np.sin(np.arange(16_000) * 2 * np.pi * hz / 16_000).astype(np.float32) / 4, 16_000


def votes_of(path: Path, identity: str, choices: dict[str, str], listener: str = "l1") -> Path:
    votes = [{"sentence": name, "choice": choice} for name, choice in choices.items()]
    record = {"schema_version": 1, "comparison": identity, "listener": listener, "votes": votes}
    path.write_text(json.dumps(record))
    return path


def made_key(workspace: Workspace, firsts: str = "ab") -> str:
    """The key of a comparison whose sentences have these sides first."""
    trials = [{"sentence": f"en-{number}", "text": "x", "first": first} for number, first in enumerate(firsts)]
    sides = {"a": {"label": "anna 1"}, "b": {"label": "anna 2"}}
    place = workspace.root / "comparisons"
    place.mkdir(exist_ok=True)
    (place / "c0ffee.json").write_text(json.dumps({"id": "c0ffee", **sides, "trials": trials}))
    return "c0ffee"


@pytest.mark.parametrize("count", [1, 2, 7, 8])
def test_each_side_comes_first_half_of_the_time(count: int) -> None:
    sentences = [sentence(number) for number in range(count)]
    pairs = [(wave(200), wave(300)) for _ in sentences]
    orders = set()
    for seed in range(12):
        trials = draw_trials(sentences, pairs, seed)
        first = sum(trial.first == "a" for trial in trials)
        assert abs(2 * first - count) == count % 2
        assert {trial.sentence.name for trial in trials} == {entry.name for entry in sentences}
        orders.add(tuple((trial.sentence.name, trial.first) for trial in trials))
        assert trials == draw_trials(sentences, pairs, seed)
    assert len(orders) > 1
    for trial in trials:  # what is offered first is the side that the key says
        heard = np.abs(np.fft.rfft(decode_mono(trial.audio[0]))).argmax()
        assert heard == (200 if trial.first == "a" else 300)


def decode_mono(data: bytes) -> np.ndarray:
    return decode(io.BytesIO(data)).wave[:, 0]


def test_the_page_names_neither_side_and_text_is_text() -> None:
    audio = (encode_flac(*wave(200)), encode_flac(*wave(300)))
    written = page("c0ffee", [Trial(sentence=sentence(1, HOSTILE), first="b", audio=audio)])
    assert written.count("<script") == 1
    assert "anna" not in written
    other = page("c0ffee", [Trial(sentence=sentence(1, HOSTILE), first="a", audio=audio)])
    assert other == written  # the order is in the audio alone


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1280, "dark")])
def test_from_the_keyboard(tmp_path: Path, width: int, scheme: str) -> None:
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine's path")
    playwright = pytest.importorskip("playwright.sync_api")
    workspace = Workspace.open(tmp_path / "w")
    identity = made_key(workspace, "abab")
    audio = (encode_flac(*wave(200)), encode_flac(*wave(300)))
    trials = [Trial(sentence=sentence(number, HOSTILE), first="ab"[number % 2], audio=audio) for number in range(4)]
    place = tmp_path / "index.html"
    place.write_text(page(identity, trials), encoding="utf-8")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
        )
        tab = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
        said: list[str] = []
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("dialog", lambda dialog: said.append(dialog.message))
        tab.goto(place.as_uri())
        # Polling inside the page would be evaluating text, which it forbids.
        for _ in range(200):
            if tab.evaluate("[...document.querySelectorAll('audio')].every(player => player.readyState > 0)"):
                break
            tab.wait_for_timeout(50)
        else:
            pytest.fail("an audio cannot be read")
        assert tab.evaluate("document.documentElement.scrollWidth") <= width

        def listen(index: int) -> None:
            for key, side in (("1", "first"), (" ", "second")):
                tab.keyboard.press(key)
                tab.wait_for_selector(f".clip:nth-child({index + 1}) [data-side={side}][data-heard]")

        tab.keyboard.press("ArrowLeft")  # too early: nothing was heard
        assert tab.locator("#state").text_content() == "0 of 4 decided, listen to both first"
        listen(0)
        tab.keyboard.press("ArrowLeft")  # first, which is a
        assert tab.evaluate("current") == 1
        listen(1)
        tab.keyboard.press("ArrowRight")  # second, which is a
        listen(2)
        tab.keyboard.press("0")
        listen(3)
        tab.keyboard.press("ArrowRight")
        tab.keyboard.press("u")
        tab.locator("[data-vote=first]").nth(3).click()  # first, which is b
        with tab.expect_download() as download:
            tab.keyboard.press("s")
        assert download.value.suggested_filename.startswith("votes-c0ffee-")
        download.value.save_as(tmp_path / "votes.json")
        assert tab.locator("#state").text_content() == "4 of 4 decided, saved"
        browser.close()
    assert said == []
    (found,) = read_votes([tmp_path / "votes.json"], workspace)
    assert (found.for_a, found.for_b, found.same, found.listeners) == (2, 1, 1, 1)


def test_votes_are_counted_by_who_was_first(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path / "w")
    identity = made_key(workspace, "abba")
    one = votes_of(tmp_path / "1.json", identity, {"en-0": "first", "en-1": "second", "en-2": "second", "en-3": "same"})
    (found,) = read_votes([one], workspace)
    assert (found.for_a, found.for_b, found.same) == (3, 0, 1)
    assert (found.share, found.p_value) == (1.0, 0.25)
    assert found.of("a")["preference/low"] == pytest.approx(found.interval[0])
    assert found.of("b")["preference/high"] == pytest.approx(1 - found.interval[0])
    # The same listener again replaces the votes, another one adds to them.
    again = votes_of(tmp_path / "2.json", identity, {"en-0": "second"})
    other = votes_of(tmp_path / "3.json", identity, {"en-0": "first", "en-1": "same"}, listener="l2")
    (found,) = read_votes([one, again, other], workspace)
    assert (found.for_a, found.for_b, found.same, found.listeners) == (1, 1, 1, 2)
    (found,) = read_votes([votes_of(tmp_path / "4.json", identity, {"en-0": "same"})], workspace)
    assert (found.share, found.p_value, found.interval) == (None, 1.0, (0.0, 1.0))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("no JSON", "not what the comparison page saves"),
        ("[]", "not what the comparison page saves"),
        ('{"comparison": "c0ffee", "listener": "l", "votes": [{"sentence": "en-0", "choice": "a"}]}', "first, second"),
        ('{"comparison": "c0ffee", "listener": "l", "votes": [{"sentence": "en-9", "choice": "same"}]}', "'en-9'"),
        ('{"comparison": "../../x", "listener": "l", "votes": []}', "did not make"),
        ('{"comparison": "c0ffed", "listener": "l", "votes": []}', "did not make"),
        ('{"comparison": 3, "listener": "l", "votes": []}', "not what the comparison page saves"),
        ('{"comparison": "c0ffee", "listener": "l", "votes": [{"sentence": "en-0", "choice": []}]}', "not what"),
    ],
)
def test_what_is_no_vote_is_refused(tmp_path: Path, text: str, says: str) -> None:
    workspace = Workspace.open(tmp_path / "w")
    made_key(workspace)
    (tmp_path / "votes.json").write_text(text)
    with pytest.raises(ValueError, match=says):
        read_votes([tmp_path / "votes.json"], workspace)


def test_two_versions_are_spoken_voted_on_and_marked(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path / "w")
    uri = workspace.default_tracking_uri
    tracker = Tracker(uri, "corpus")
    for number, scale in ((1, 1.01), (2, 1.05)):
        register_voice(tracker, write_nano_run(workspace.corpus, run_id=str(number) * 20, scale=scale))
    lines = tmp_path / "lines.txt"
    lines.write_text("Good morning.\n\nGood night.\nGood morning.\n", encoding="utf-8")
    made = compare(workspace, "alice:1", "alice@challenger", tracking_uri=uri, sentences=lines, seed=3)
    assert made.sentences == 2
    key = json.loads(made.key.read_text())
    assert (key["a"]["version"], key["b"]["version"]) == (1, 2)
    assert made.page.read_text(encoding="utf-8").count("data:audio/flac") == 4
    choices = {trial["sentence"]: CHOICES[trial["first"] != "a"] for trial in key["trials"]}
    (found,) = read_votes([votes_of(tmp_path / "votes.json", made.identity, choices)], workspace)
    assert (found.for_a, found.for_b) == (2, 0)
    assert log_preference(found, uri) == ["gsv-alice version 1", "gsv-alice version 2"]
    registry = Registry(uri)
    for version, share in ((1, 1.0), (2, 0.0)):
        entry = registry.version_of("alice", version=version)
        told = json.loads(registry.tags_of(entry)[f"preference.{made.identity}"])
        assert told["preference/share"] == share
        assert registry.store.client.get_run(entry.run_id).data.metrics["preference/share"] == share
    # A run that is not registered, or not any more, is heard all the same.
    run = next(workspace.corpus.glob("voices/alice/runs/1*"))
    beside = compare(workspace, str(run), "alice", tracking_uri=uri, sentences=lines, most=1)
    assert json.loads(beside.key.read_text())["a"]["label"].startswith("alice run 1")
    with pytest.raises(ValueError, match="are the same"):
        compare(workspace, "alice:2", "alice", tracking_uri=uri, sentences=lines)
    with pytest.raises(ValueError, match=r"anna:x: expected VOICE"):
        compare(workspace, "anna:x", "alice", tracking_uri=uri)
