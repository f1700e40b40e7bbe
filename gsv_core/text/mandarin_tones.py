"""Dictionary tones to spoken tones: third tone, 一, 不, neutral tone and 儿, as PaddleSpeech's `tone_sandhi` has it.

The models were trained on the tones these rules give, so the rules and the word lists are PaddleSpeech's (Apache-2.0,
see `data`). A word is (characters, part-of-speech tag of jieba); a final carries its tone as the last character, 5 is
neutral.
"""

from collections.abc import Callable, Sequence

from gsv_core.text.mandarin_normalisation import word_lists
from gsv_core.text.symbols import MARKS

Word = tuple[str, str]
FinalsOf = Callable[[str], Sequence[str]]
Splitter = Callable[[str], tuple[str, str]]

_LONGEST_MERGED = 3
_PARTICLES = frozenset("吧呢哈啊呐噻嘛吖嗨哦哒额滴哩哟喽啰耶喔诶")
_STRUCTURAL = frozenset("的地得")
_ASPECT_TAGS = frozenset({"ul", "uz", "ug"})
_PLACE_TAGS = frozenset({"s", "l", "f"})
_BEFORE_DIRECTION = frozenset("上下进出回过起开")
_BEFORE_COUNTING_GE = frozenset("几有两半多各整每做是")
_NO_ER_TAGS = frozenset({"a", "j", "nr"})


def merge_words(words: Sequence[Word], finals_of: FinalsOf) -> list[Word]:
    """Join what the tone rules must see together: 不 and 一 with what follows, repetitions, third tones, 儿."""
    merged = _merge_bu(words)
    merged = _merge_yi(merged)
    merged = _merge_repeated(merged)
    merged = _merge_third(merged, finals_of, lambda left, right: all(final[-1] == "3" for final in (*left, *right)))
    merged = _merge_third(merged, finals_of, lambda left, right: left[-1][-1] == right[0][-1] == "3")
    return _merge_er(merged)


def _merge_bu(words: Sequence[Word]) -> list[Word]:
    merged: list[Word] = []
    waiting = False
    for text, tag in words:
        text = f"不{text}" if waiting else text
        waiting = text == "不"
        if not waiting:
            merged.append((text, tag))
    return [*merged, ("不", "d")] if waiting else merged


def _merge_yi(words: Sequence[Word]) -> list[Word]:
    around: list[Word] = []
    index = 0
    while index < len(words):
        text, tag = words[index]
        twice = index + 2 < len(words) and words[index + 1][0] == "一" and words[index + 2] == (text, tag)
        if twice and tag == "v":
            around.append((f"{text}一{text}", tag))
            index += 3
        else:
            around.append((text, tag))
            index += 1
    merged: list[Word] = []
    for text, tag in around:
        if merged and merged[-1][0] == "一":
            merged[-1] = (f"一{text}", merged[-1][1])
        else:
            merged.append((text, tag))
    return merged


def _merge_repeated(words: Sequence[Word]) -> list[Word]:
    merged: list[Word] = []
    for text, tag in words:
        if merged and merged[-1][0] == text:
            merged[-1] = (text * 2, merged[-1][1])
        else:
            merged.append((text, tag))
    return merged


def _merge_third(
    words: Sequence[Word], finals_of: FinalsOf, belong: Callable[[Sequence[str], Sequence[str]], bool]
) -> list[Word]:
    merged: list[Word] = []
    just_merged = False
    for index, (text, tag) in enumerate(words):
        before = words[index - 1][0] if index else ""
        fits = (
            bool(before)
            and not just_merged
            and len(before) + len(text) <= _LONGEST_MERGED
            and not (len(before) == 2 and before[0] == before[1])
            and belong(finals_of(before), finals_of(text))
        )
        if fits:
            merged[-1] = (merged[-1][0] + text, merged[-1][1])
        else:
            merged.append((text, tag))
        just_merged = fits
    return merged


def _merge_er(words: Sequence[Word]) -> list[Word]:
    merged: list[Word] = []
    for text, tag in words:
        if merged and text == "儿":
            merged[-1] = (merged[-1][0] + text, merged[-1][1])
        else:
            merged.append((text, tag))
    return merged


def _toned(final: str, tone: str) -> str:
    return final[:-1] + tone


def spoken_tones(word: Word, finals: Sequence[str], split: Splitter) -> list[str]:
    """The finals of one merged word, one a character, with the tones they are spoken with."""
    text, tag = word
    spoken = list(finals)
    _speak_bu(text, spoken)
    _speak_yi(text, spoken)
    _speak_neutral(text, tag, spoken, split)
    return _speak_third(text, spoken, split)


def _speak_bu(text: str, finals: list[str]) -> None:
    if len(text) == 3 and text[1] == "不":
        finals[1] = _toned(finals[1], "5")
        return
    for index, character in enumerate(text[:-1]):
        if character == "不" and finals[index + 1][-1] == "4":
            finals[index] = _toned(finals[index], "2")


def _speak_yi(text: str, finals: list[str]) -> None:
    if "一" not in text or all(character == "一" or character.isnumeric() for character in text):
        return
    if len(text) == 3 and text[1] == "一" and text[0] == text[2]:
        finals[1] = _toned(finals[1], "5")
        return
    if text.startswith("第一"):
        finals[1] = _toned(finals[1], "1")
        return
    for index, character in enumerate(text[:-1]):
        if character != "一":
            continue
        if finals[index + 1][-1] == "4":
            finals[index] = _toned(finals[index], "2")
        elif text[index + 1] not in MARKS:
            finals[index] = _toned(finals[index], "4")


def _is_neutral_word(text: str) -> bool:
    words = word_lists()["neutral"]
    return text in words or text[-2:] in words


def _light_at(text: str, tag: str) -> int | None:
    """Which character of a word has the neutral tone by rule or list, if one has."""
    end = len(text) - 1
    last, before = text[-1], text[-2:-1]
    if last in _PARTICLES or last in _STRUCTURAL:
        return end
    if text in ("了", "着", "过") and tag in _ASPECT_TAGS:
        return end
    plural_or_noun = last in "们子" and tag in ("r", "n") and text not in word_lists()["not_neutral"]
    place = last in "上下里" and tag in _PLACE_TAGS
    direction = last in "来去" and before in _BEFORE_DIRECTION
    if before and (plural_or_noun or place or direction):
        return end
    counting = text.find("个")
    counted = counting > 0 and (text[counting - 1].isnumeric() or text[counting - 1] in _BEFORE_COUNTING_GE)
    if text == "个" or counted:
        return counting
    return end if _is_neutral_word(text) else None


def _speak_neutral(text: str, tag: str, finals: list[str], split: Splitter) -> None:
    if tag[:1] in ("n", "v", "a") and text not in word_lists()["not_neutral"]:
        for index in range(1, len(text)):
            if text[index] == text[index - 1]:
                finals[index] = _toned(finals[index], "5")
    light = _light_at(text, tag)
    if light is not None:
        finals[light] = _toned(finals[light], "5")
    head, tail = split(text)
    if head and _is_neutral_word(head):
        finals[len(head) - 1] = _toned(finals[len(head) - 1], "5")
    if tail and _is_neutral_word(tail):
        finals[-1] = _toned(finals[-1], "5")


def _all_third(finals: Sequence[str]) -> bool:
    return all(final[-1] == "3" for final in finals)


def _speak_third(text: str, finals: list[str], split: Splitter) -> list[str]:
    second = [_toned(final, "2") for final in finals]
    if len(text) == 2 and _all_third(finals):
        return [second[0], finals[1]]
    if len(text) == 3:
        head = len(split(text)[0])
        if _all_third(finals):
            # 蒙古+包 is 2 2 3, 纸+老虎 is 3 2 3; a word without parts stays as it is.
            return [second[0] if head == 2 else finals[0], finals[1] if head == 3 else second[1], finals[2]]
        spoken = list(finals)
        for start, stop in ((0, head), (head, 3)):
            if stop - start == 2 and _all_third(finals[start:stop]):
                spoken[start] = second[start]
            elif start and not _all_third(finals[start:stop]) and finals[start][-1] == spoken[start - 1][-1] == "3":
                # 好+喜欢
                spoken[start - 1] = second[start - 1]
        return spoken
    if len(text) == 4:
        spoken = list(finals)
        for start in (0, 2):
            if _all_third(finals[start : start + 2]):
                spoken[start] = second[start]
        return spoken
    return finals


def speak_er(word: Word, finals: Sequence[str]) -> list[str]:
    """A word's last 儿 takes the tone of the syllable before it, unless it is a child and not a suffix (女儿)."""
    text, tag = word
    spoken = list(finals)
    if not text.endswith("儿"):
        return spoken
    if spoken[-1] == "er1":
        spoken[-1] = "er2"
    lists = word_lists()
    if text not in lists["always_er"] and (text in lists["never_er"] or tag in _NO_ER_TAGS):
        return spoken
    if len(text) > 1 and spoken[-1] in ("er2", "er5") and text[-2:] not in lists["never_er"]:
        spoken[-1] = f"er{spoken[-2][-1]}"
    return spoken
