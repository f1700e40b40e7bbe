from hypothesis import given
from hypothesis import strategies as st

from pipelines.rows import RATE_HZ
from pipelines.subtitles import read_cues

SRT = """1
00:00:01,000 --> 00:00:02,500
<i>Good</i> morning,
everybody.

2
00:01:00.25 --> 00:01:01,000
2024

3
00:00:05,000 --> 00:00:04,000
ends before it begins
"""


def test_cues_are_read_in_order_with_samples_and_without_tags() -> None:
    first, second = read_cues(SRT)
    assert (first.start_sample, first.end_sample) == (RATE_HZ, 5 * RATE_HZ // 2)
    assert first.text == "Good morning, everybody."
    assert second.start_sample == 60 * RATE_HZ + RATE_HZ // 4
    assert second.text == "2024"


def test_windows_line_ends_and_no_blank_lines_are_fine() -> None:
    assert len(read_cues(SRT.replace("\n", "\r\n"))) == 2
    dense = "1\n00:00:00,000 --> 00:00:01,000\none\n2\n00:00:01,000 --> 00:00:02,000\ntwo\n"
    assert [cue.text for cue in read_cues(dense)] == ["one", "two"]


@given(st.text(alphabet="0123456789:,-> \n<>{}\\ab", max_size=300))
def test_any_text_gives_ordered_cues_or_none(text: str) -> None:
    cues = read_cues(text)
    assert all(cue.end_sample > cue.start_sample >= 0 and cue.text for cue in cues)
    assert cues == sorted(cues, key=lambda cue: cue.start_sample)
