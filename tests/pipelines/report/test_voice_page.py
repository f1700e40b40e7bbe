"""The page about one voice, opened in a real browser."""

import re
from pathlib import Path

import pytest

from jobs.report import report
from tests.pipelines.report.made_corpus import HOSTILE, make_corpus
from tests.pipelines.report.test_page import CHROMIUM


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report(make_corpus(tmp_path_factory.mktemp("voices") / "corpus")).parent


def test_every_voice_with_recordings_has_a_page_that_the_report_leads_to(pages: Path) -> None:
    text = (pages / "index.html").read_text(encoding="utf-8")
    linked = set(re.findall(r'href="voices/(\w+)\.html"', text))
    assert linked == {path.stem for path in (pages / "voices").glob("*.html")} >= {"ada", "linus"}


def test_hostile_text_stays_text(pages: Path) -> None:
    text = (pages / "voices" / "hostile.html").read_text(encoding="utf-8")
    assert HOSTILE not in text
    assert "<script" not in text


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_opens_without_complaint_and_plays(pages: Path, width: int, scheme: str) -> None:
    from playwright.sync_api import sync_playwright

    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
        complaints: list[str] = []
        requests: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto((pages / "voices" / "ada.html").as_uri(), wait_until="load")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator("svg.strip rect").count() > 0
        assert page.locator("svg.outline").count() == page.locator("audio").count() > 0
        loaded = "[...document.images].every(image => image.complete && image.naturalWidth > 0)"
        assert page.evaluate(loaded)
        page.wait_for_function("[...document.querySelectorAll('audio')].every(audio => audio.duration > 1)")
        browser.close()
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
