"""The page about the scores of a run: what it says, what can be heard, and that it holds in a browser."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from jobs.evaluation_page import write_evaluation_page
from jobs.measures import MEASURES
from jobs.scoring import NUMBERS, summarise
from pipelines.engines.flac import encode_flac
from tests.jobs.run_fixture import RATE_HZ, tone, tone_wav

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = "<script>alert(1)</script>"


def records(kind: str, run_dir: Path, likeness: float, text: str, **changes: Any) -> list[dict[str, Any]]:
    found = []
    for number in range(2):
        audio = f"audio/{kind}/en-{number}.wav"
        (run_dir / audio).parent.mkdir(parents=True, exist_ok=True)
        (run_dir / audio).write_bytes(tone_wav(0.5))
        numbers = {**dict.fromkeys(NUMBERS), "likeness": likeness + number / 10, "fault_share": 0.0, **changes}
        told = {"name": f"en-{number}", "text": text, "language": "en", "held_out": number == 0}
        found.append({**told, "recognised": text, "faults": ["cut_end"], "audio": audio, "numbers": numbers})
    return found


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A finished run of two pairs with a hostile text, its page written."""
    run_dir = tmp_path / "run"
    steps = (("semantic-s000020", "wave-s000030"), ("semantic-s000040", "wave-s000030"))
    pairs = [
        {
            "semantic": semantic,
            "wave": wave,
            **summarise(records(f"{semantic}+{wave}", run_dir, 0.4 + 0.2 * place, HOSTILE, mel_cepstral_distance=7.0)),
        }
        for place, (semantic, wave) in enumerate(steps)
    ]
    others = {
        kind: {"semantic": None, "wave": None, **summarise(records(kind, run_dir, 0.9, HOSTILE))}
        for kind in ("base", "ceiling")
    }
    scores = {
        "engines": {"speaker_verifier": "bands"},
        "measures": {"likeness": {"engine": "bands", "independent": False}},
        "speech": None,
        "pairs": pairs,
        "best": {"semantic": steps[1][0], "wave": steps[1][1], "rule": "the best"},
        **others,
    }
    for folder in (run_dir, run_dir / "prompts" / "calm"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "prompt.flac").write_bytes(encode_flac(tone(3.0), RATE_HZ))
        (folder / "prompt.json").write_text(json.dumps({"text": HOSTILE, "language": "en"}))
    write_evaluation_page(
        run_dir,
        {"voice": "ada", "display_name": HOSTILE, "release": "nano", "run_id": "r1"},
        scores,
        {"train_seconds": 75.0, "evaluate_seconds": 12.5},
    )
    return run_dir


def test_one_table_one_chart_and_the_audio_beside_it(run_dir: Path) -> None:
    text = (run_dir / "evaluation.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert text.count('<tr class="best">') == 1
    assert "GPT 40 + SoVITS 30</b> is chosen of 2 saved pairs" in text
    assert "0.600 – 0.700" in text  # the likeness of the chosen pair's two sentences
    assert "not independent" in text
    assert "end cut off" in text
    # Two sentences by two pairs, base and recordings; two Prompts.
    assert text.count("<audio") == 2 * 4 + 2
    assert "Prompt, calm" in text
    assert "Mel cepstral distance" in text
    assert "Pitch error" not in text  # no row has it
    assert "1:15 min" in text
    assert "12.5 s" in text


def test_every_measure_of_the_table_is_one_that_is_taken() -> None:
    assert {measure.key for measure in MEASURES} <= {*NUMBERS, "score"}


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1280, "dark")])
def test_in_a_browser(run_dir: Path, width: int, scheme: str) -> None:
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine's path")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
        said: list[str] = []
        tab.on("console", lambda message: said.append(message.text))
        tab.on("dialog", lambda dialog: said.append(dialog.message))
        tab.goto((run_dir / "evaluation.html").as_uri())
        # Polling inside the page would be evaluating text, which it forbids.
        for _ in range(200):
            if tab.evaluate("[...document.querySelectorAll('audio')].every(player => player.readyState > 0)"):
                break
            tab.wait_for_timeout(50)
        else:
            pytest.fail("an audio cannot be read")
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        browser.close()
    assert said == []
