"""A Closeup to one self-contained HTML page about one voice: no script, no request, everything inside."""

import base64
from pathlib import Path

from markupsafe import Markup

from pipelines.report import wording
from pipelines.report.charts import number
from pipelines.report.closeup import Closeup, LookedAt, Timeline
from pipelines.report.numbers import VoiceNumbers
from pipelines.report.page import environment_of, histograms, put
from pipelines.report.pictures import outline, spectrogram_png


def write_voice_page(voice: VoiceNumbers, closeup: Closeup, out: Path) -> Path:
    """Write the page to `out`, all or nothing, and give `out` back."""
    return put(voice_page(voice, closeup), out)


def voice_page(voice: VoiceNumbers, closeup: Closeup) -> str:
    """The whole page as text."""
    environment = environment_of()
    environment.filters.update(outline=_outline, spectrogram=_spectrogram, strip=_strip, number=number)
    return environment.get_template("voice.html").render(
        voice=voice,
        closeup=closeup,
        charts=histograms(voice),
        measured={key: name for key, (name, _) in wording.DISTRIBUTIONS.items()},
    )


def _outline(wave: object, title: str) -> Markup:
    return outline(wave, title=f"Wave of {title}")  # type: ignore[arg-type]  # Jinja passes what the template has


def _spectrogram(clip: LookedAt) -> str:
    return f"data:image/png;base64,{base64.b64encode(spectrogram_png(clip.wave, clip.rate_hz)).decode()}"


def _strip(timeline: Timeline) -> Markup:
    """Kept and rejected spans of a recording over its length; the words of each where a pointer rests."""
    shapes = [
        Markup('<rect class="{}" x="{:.3f}" y="0" width="{:.3f}" height="10"><title>{}</title></rect>').format(
            span.kind,
            1000 * span.start_s / timeline.seconds,
            1000 * (span.end_s - span.start_s) / timeline.seconds,
            f"{wording.duration(span.start_s)}: {span.says}",
        )
        for span in timeline.spans
    ]
    kept = sum(span.end_s - span.start_s for span in timeline.spans if span.kind == "kept")
    told = f"{timeline.name}: {wording.duration(kept)} of {wording.duration(timeline.seconds)} kept"
    return Markup(
        '<svg class="strip" viewBox="0 0 1000 10" preserveAspectRatio="none" role="img" aria-label="{}">{}</svg>'
    ).format(told, Markup("").join(shapes))
