"""The page opens by itself in a real browser, asks nobody for anything, and shows what it should at every width."""

import re
import shutil
from html.parser import HTMLParser

import pytest

from pipelines.report.numbers import CorpusNumbers, Outcome, RejectionGroup, VoiceNumbers, collect, record_outcomes
from pipelines.report.page import page, write_report
from tests.pipelines.report.made_corpus import HOSTILE, make_corpus

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    corpus = make_corpus(tmp_path_factory.mktemp("report") / "corpus")
    registered = Outcome(
        state="registered",
        model_name="gsv-ada",
        model_version="3",
        model_uri="https://ann:secret@mlflow.example/#/models",
    )
    outcomes = {
        "ada": registered,
        "broken": Outcome(state="failed", reason="loss is not finite at step 12"),
        "mute": Outcome(state="too_little_data", reason="0 s kept"),
    }
    record_outcomes(corpus, outcomes)
    return write_report(collect(corpus), corpus / "report" / "index.html")


class _Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def _tags(text):
    parser = _Tags()
    parser.feed(text)
    return parser.tags


def test_the_first_lines_say_what_happened(report):
    text = report.read_text(encoding="utf-8")
    assert "<h1>5 voices: 1 registered, 2 prepared, 1 with too little data, 1 failed</h1>" in text
    assert "its speech is not speech" in text
    assert "loss is not finite at step 12" in text
    for engine in ("pocketsphinx 5.1.0", "resemblyzer 0.1.4", "DNSMOS P.835"):
        assert engine in text
    assert "Likeness is not independent" in text
    assert "<dt>Training took</dt><dd>41.2 s</dd>" in text
    assert "<dt>Tools</dt><dd>torch 2.8.0, ray 2.60.0</dd>" in text
    assert not list(report.parent.glob("*.partial"))


def test_the_sounds_of_each_language_are_told(report):
    text = report.read_text(encoding="utf-8")
    assert "Sounds of English" in text
    assert "Sounds of Mandarin" in text
    assert "Stressed and weak vowels" in text
    assert re.search(r"15 of 39</small>", text)
    assert "<span>AH N</span>" in text
    assert re.search(r"and [\d,]+ more", text)


def test_hostile_text_stays_text(report):
    text = report.read_text(encoding="utf-8")
    names = [tag for tag, _ in _tags(text)]
    assert "script" not in names
    assert "b" not in names
    assert HOSTILE not in text
    assert "&lt;script&gt;" in text
    for _, attributes in _tags(text):
        assert not [name for name in attributes if name.startswith("on")]


def test_nothing_points_outside(report):
    for tag, attributes in _tags(report.read_text(encoding="utf-8")):
        for name in ("src", "href", "poster", "action", "data", "srcset"):
            if name in attributes:
                assert attributes[name].startswith(("data:", "#")), f"<{tag} {name}={attributes[name][:60]!r}>"
    assert not re.search(r"url\(|@import", report.read_text(encoding="utf-8"))


def test_secrets_in_addresses_are_left_out(report):
    text = report.read_text(encoding="utf-8")
    assert "https://mlflow.example/#/models" in text
    assert "secret" not in text


def test_hostile_names_null_numbers_and_lone_surrogates():
    group = RejectionGroup(
        stage="ingest", reason=HOSTILE, count=1, seconds=None, examples=("\udcff.wav", "\u202egnp.exe")
    )
    voice = VoiceNumbers(voice=f'x" onmouseover="{HOSTILE}', state="failed", reason=HOSTILE, rejections=(group,))
    text = page(CorpusNumbers(name=HOSTILE, voices=(voice,), notes=(HOSTILE,), facts={HOSTILE: HOSTILE}))
    assert "script" not in [tag for tag, _ in _tags(text)]
    assert text.encode("utf-8", "replace")
    assert "1 voice failed" in text


def test_an_empty_corpus_has_a_page_too(tmp_path):
    path = write_report(CorpusNumbers(name="empty"), tmp_path / "new" / "index.html")
    assert "No voices came in" in path.read_text(encoding="utf-8")


def test_anchors_are_unique_and_lead_somewhere(report):
    tags = _tags(report.read_text(encoding="utf-8"))
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [attributes["href"][1:] for tag, attributes in tags if tag == "a"]
    assert set(links) <= set(ids)
    assert len(links) == 6


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine's path")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_in_a_browser(browser, report, width, scheme):
    tab = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    said, asked = [], []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url[:80]))
    tab.goto(report.as_uri())
    tab.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    tab.wait_for_function("[...document.querySelectorAll('audio')].every(player => player.readyState > 0)")
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    players = tab.evaluate("[...document.querySelectorAll('audio')].map(player => player.duration)")
    assert len(players) == 9
    assert all(1.9 < seconds < 3.1 for seconds in players)
    charts = tab.locator("svg.chart")
    assert charts.count() >= 15
    assert all(charts.nth(index).bounding_box()["width"] > 200 for index in range(charts.count()))
    # The whole corpus and three voices; three kinds of sounds in English and in Mandarin.
    assert tab.locator("svg.stacked").count() == 4 + 6
    assert all(tab.locator(".covered svg").nth(index).bounding_box()["width"] > 200 for index in range(6))
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background))) > 384) == (scheme == "light")
    tab.close()


def test_text_can_be_read_in_both_schemes(browser, report):
    """Contrast of every text against the page's ground is at least 4.5 (WCAG 2.2, AA)."""
    luminance = """colour => {
        const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).map(v => v / 255)
            .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    }"""
    for scheme in ("light", "dark"):
        tab = browser.new_page(color_scheme=scheme)
        tab.goto(report.as_uri())
        low = tab.evaluate(
            f"""() => {{
            const luminance = {luminance};
            const ground = element => {{
                for (let e = element; e; e = e.parentElement) {{
                    const colour = getComputedStyle(e).backgroundColor;
                    if (colour !== 'rgba(0, 0, 0, 0)') return colour;
                }}
            }};
            const found = [];
            for (const e of document.querySelectorAll('body *')) {{
                const text = [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
                if (!text || e.closest('audio')) continue;
                const style = getComputedStyle(e);
                const colour = e instanceof SVGElement ? style.fill : style.color;
                const [a, b] = [luminance(colour), luminance(ground(e))].sort((x, y) => y - x);
                const contrast = (a + 0.05) / (b + 0.05);
                if (contrast < 4.5) found.push([e.tagName, e.className.baseVal ?? e.className, contrast]);
            }}
            return found;
        }}"""
        )
        assert low == [], scheme
        tab.close()
