"""SubRip text (`.srt`) to cues: what was said from when to when. Times become 32 kHz samples at once."""

import re
from dataclasses import dataclass

from pipelines.rows import RATE_HZ

_TIMES = re.compile(
    r"^\s*(\d{1,3}):(\d{1,2}):(\d{1,2})[,.](\d{1,3})\s*-->\s*(\d{1,3}):(\d{1,2}):(\d{1,2})[,.](\d{1,3})", re.ASCII
)
_TAGS = re.compile(r"<[^<>]{0,40}>|\{\\[^{}]{0,40}\}")


@dataclass(frozen=True, kw_only=True)
class Cue:
    """One subtitle; `end_sample` is behind its last sample."""

    start_sample: int
    end_sample: int
    text: str


def read_cues(srt: str) -> list[Cue]:
    """The cues of an `.srt` in order of time. Blocks without times or text are passed over, tags are removed."""
    cues = []
    lines = srt.splitlines()
    places = [(index, match) for index, line in enumerate(lines) if (match := _TIMES.match(line))]
    for number, (index, match) in enumerate(places):
        end = places[number + 1][0] if number + 1 < len(places) else len(lines)
        body = [line.strip() for line in lines[index + 1 : end]]
        # The number of the next cue stands alone on the last line before its times.
        if number + 1 < len(places) and body and body[-1].isdigit():
            body.pop()
        text = _TAGS.sub("", " ".join(filter(None, body))).strip()
        start, stop = _samples(*match.groups()[:4]), _samples(*match.groups()[4:])
        if text and stop > start:
            cues.append(Cue(start_sample=start, end_sample=stop, text=text))
    return sorted(cues, key=lambda cue: (cue.start_sample, cue.end_sample))


def _samples(hours: str, minutes: str, seconds: str, fraction: str) -> int:
    milliseconds = int(fraction.ljust(3, "0"))
    return ((int(hours) * 60 + int(minutes)) * 60 + int(seconds)) * RATE_HZ + milliseconds * RATE_HZ // 1000
