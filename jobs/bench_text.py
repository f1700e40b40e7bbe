"""How fast text becomes phonemes: texts of each language to characters per second, one process, one thread.

`measure_text` answers with one row a language, for `gsv bench` to print. The package's import is timed in a process of
its own, since here it is long done.
"""

import subprocess
import sys
import time
from dataclasses import dataclass

from gsv_core.text.front_end import cut_text, phonemise

# Sentences of everyday length, with a number or a Latin word here and there.
_TEXTS = {
    "zh": (
        "清晨的菜市场里人声鼎沸，卖鱼的大叔一边吆喝一边刮着鱼鳞。图书馆在三楼，藏书超过25万册，周末也开放。"
        "他把雨伞忘在办公室里了，只好淋着雨跑回家！你能不能告诉我，去火车站坐几路车？"
    ),
    "en": (
        "The neighbors are having a barbecue in the backyard, and everybody is invited. She paid $6.24 for coffee, "
        "read the paper, and left at 10:30. Could you close the window? It was the coldest winter in 25 years! "
    ),
    "ja": "図書館は駅の近くにあって、とても静かです。昨日、友達と3時間も勉強しました。明日も行きませんか？",
    "ko": "도서관은 역 근처에 있어서 정말 조용해요. 어제 친구와 3시간 동안 공부했습니다. 내일도 같이 갈까요? ",
    "yue": "圖書館喺火車站隔籬，好靜㗎。我尋日同朋友溫咗三個鐘頭書，聽日仲會再去。你去唔去呀？",
    "auto": "他昨天在Apple Store买了一台新电脑，花了8000元。今日はいい天気ですね。See you tomorrow! 내일 만나요. ",
}
LANGUAGES = tuple(_TEXTS)
_IMPORT = "import time; start = time.perf_counter(); import gsv_core.text.front_end; print(time.perf_counter() - start)"


@dataclass(frozen=True, kw_only=True)
class TextSpeed:
    """One language. `growth`: time per character of a text ten times as long, over a short one's; 1 is linear."""

    language: str
    characters_per_second: float
    growth: float


@dataclass(frozen=True, kw_only=True)
class TextBench:
    """Seconds the package takes to import, before any language is loaded, and the speed of each language."""

    import_seconds: float
    speeds: tuple[TextSpeed, ...]


def _different(text: str, characters: int) -> str:
    """`text` over and over, with other numbers each time: nothing must be answered out of a cache of whole texts."""
    pieces, length, count = [], 0, 0
    while length < characters:
        pieces.append(text.replace("3", str(count % 90 + 4)).replace("25", str(count % 70 + 21)))
        length += len(pieces[-1])
        count += 1
    return "".join(pieces)[:characters]


def _seconds(text: str, language: str) -> float:
    start = time.process_time()
    phonemise(text, language)
    return time.process_time() - start


def _speed(language: str, characters: int) -> TextSpeed:
    text = _TEXTS[language]
    phonemise(text, language)
    long = _different(text, characters)
    # As a flow meets it: one utterance at a time.
    pieces = cut_text(long, "cut5")
    start = time.process_time()
    for piece in pieces:
        phonemise(piece, language)
    taken = time.process_time() - start
    short = min(_seconds(long[: characters // 10], language) for _ in range(3))
    return TextSpeed(
        language=language,
        characters_per_second=sum(len(piece) for piece in pieces) / max(taken, 1e-9),
        growth=_seconds(long, language) / max(10 * short, 1e-9),
    )


def measure_text(languages: tuple[str, ...] = LANGUAGES, characters: int = 10_000) -> TextBench:
    """Import time and, after a first sentence has loaded it, the speed of each language over `characters` characters.

    Raises:
        ValueError: a language without a text to read.
    """
    unknown = [language for language in languages if language not in _TEXTS]
    if unknown:
        raise ValueError(f"no text to read in {', '.join(unknown)}: choose from {', '.join(_TEXTS)}")
    answer = subprocess.run([sys.executable, "-c", _IMPORT], capture_output=True, text=True, check=True)
    return TextBench(
        import_seconds=float(answer.stdout),
        speeds=tuple(_speed(language, characters) for language in languages),
    )
