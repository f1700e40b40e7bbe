"""The review page, used from the keyboard in a real browser; what it saves is a table of corrections."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from jobs.review import DoubtfulClip, page
from pipelines.corrections import Corrections
from pipelines.engines.flac import encode_flac

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = '</textarea><script>alert(1)</script>" onfocus="alert(2)'


def clip(number: int, text: str) -> DoubtfulClip:
    wave = np.sin(np.arange(64_000) * 0.05).astype(np.float32) / 4
    return DoubtfulClip(
        voice="anna",
        unit_id="u",
        clip_id=f"{number:020x}",
        recording_id="c" * 20,
        uri=f"/anna/{HOSTILE}.wav",
        start_s=1.0,
        end_s=3.0,
        language="en",
        text=text,
        recognised_text=HOSTILE,
        score=0.5,
        reasons=("heard with little confidence (0.3)",),
        left_out="",
        audio=encode_flac(wave, 32_000),
    )


def test_text_out_of_a_recording_is_text() -> None:
    written = page([clip(1, HOSTILE)])
    assert written.count("<script") == 1
    assert "</textarea><script>" not in written
    assert "Nothing is doubtful" in page([])


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (1280, "dark")])
def test_from_the_keyboard(tmp_path: Path, width: int, scheme: str) -> None:
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine's path")
    playwright = pytest.importorskip("playwright.sync_api")
    earlier = [{"clip_id": "e" * 20, "recording": "c" * 20, "text": "of before", "verdict": "keep", "language": "en"}]
    place = tmp_path / "index.html"
    place.write_text(page([clip(1, "one"), clip(2, "two"), clip(3, "three"), clip(4, HOSTILE)], earlier))
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
        said: list[str] = []
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("dialog", lambda dialog: said.append(dialog.message))
        tab.goto(place.as_uri())
        tab.wait_for_function("[...document.querySelectorAll('audio')].every(player => player.readyState > 0)")
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        tab.keyboard.press(" ")
        tab.wait_for_function("!clips[0].querySelector('audio').paused")
        tab.keyboard.press("x")
        assert tab.evaluate("clips[0].querySelector('audio').paused")
        tab.keyboard.press("e")
        tab.keyboard.press("End")
        tab.keyboard.type(' =xas "said"')
        tab.keyboard.press("Escape")
        tab.keyboard.press("ArrowDown")
        tab.keyboard.press("a")
        tab.keyboard.press("k")
        tab.keyboard.press("k")
        with tab.expect_download() as download:
            tab.keyboard.press("s")
        assert download.value.suggested_filename == "corrections.tsv"
        download.value.save_as(tmp_path / "corrections.tsv")
        assert tab.locator("#state").text_content() == "3 of 4 decided, saved"
        assert tab.evaluate("current") == 1
        browser.close()
    assert said == []
    corrections = Corrections.read(tmp_path / "corrections.tsv").by_clip
    assert {identity[-1]: entry.text for identity, entry in corrections.items()} == {
        "1": "",
        "2": 'two =xas "said"',
        "3": "three",
        "e": "of before",
    }
    assert corrections[f"{1:020x}"].rejected
