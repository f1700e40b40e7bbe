"""Written Chinese to spoken Chinese: numbers, dates, times, money, units and signs become characters.

The rules and their order follow PaddleSpeech's `zh_normalization` (Apache-2.0) as the published models saw it, since a
number must be read as it was in training. The code is ours; tables taken from there are in `data` with their notice.
Where the original reads plain nonsense (a range as a subtraction, a unit inside a Latin word) we read it right.
"""

import json
import re
from functools import cache
from importlib import resources

_DIGITS = "零一二三四五六七八九"
_UNITS = ((8, "亿"), (4, "万"), (3, "千"), (2, "百"), (1, "十"))
# Beyond this many digits nobody says a cardinal.
_LONGEST_CARDINAL = 24

_OPERATORS = {"+": "加", "-": "减", "×": "乘", "÷": "除", "=": "等于"}
_CURRENCIES = {"￥": "元", "¥": "元", "$": "美元", "€": "欧元", "£": "英镑"}
_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹ˣʸⁿ", "0123456789xyn"))
_MEASURES = {
    "km/h": "千米每小时",
    "m/s": "米每秒",
    "cm2": "平方厘米",
    "cm²": "平方厘米",
    "cm3": "立方厘米",
    "cm³": "立方厘米",
    "km2": "平方千米",
    "km²": "平方千米",
    "m2": "平方米",
    "m²": "平方米",
    "m3": "立方米",
    "m³": "立方米",
    "cm": "厘米",
    "mm": "毫米",
    "km": "千米",
    "kg": "千克",
    "ml": "毫升",
    "db": "分贝",
    "dB": "分贝",
    "ds": "毫秒",
    "ms": "毫秒",
    "m": "米",
    "s": "秒",
}
# What the original's list lacks, so that it reads 300克 digit by digit; before these a bare 2 stays 二.
MORE_COUNTED = (
    "种", "倍", "部", "字", "票", "蚊", "人次", "平方", "立方", "克", "公里", "公斤", "公顷", "公升", "分贝", "瓦",
    "赫兹", "海里", "英里", "英尺", "英寸", "磅", "欧元", "英镑", "日元", "港元",
)  # fmt: skip
_GREEK = {
    "αΑ": "阿尔法",
    "βΒ": "贝塔",
    "γΓ": "伽玛",
    "δΔ": "德尔塔",
    "εΕ": "艾普西龙",
    "ζΖ": "捷塔",
    "ηΗ": "依塔",
    "θΘ": "西塔",
    "ιΙ": "艾欧塔",
    "κΚ": "喀帕",
    "λΛ": "拉姆达",
    "μΜ": "缪",
    "νΝ": "拗",
    "ξΞ": "克西",
    "οΟ": "欧米克伦",
    "πΠ": "派",
    "ρΡ": "肉",
    "ςΣσ": "西格玛",
    "τΤ": "套",
    "υΥ": "宇普西龙",
    "φΦ": "服艾",
    "χΧ": "器",
    "ψΨ": "普赛",
    "ωΩ": "欧米伽",
}
_LAST_SIGNS = str.maketrans(
    {
        "/": "每",
        **{chr(ord("①") + index): name for index, name in enumerate("一二三四五六七八九十")},
        **_OPERATORS,
        # Outside a sum of numbers the models know it shorter: 面积=长×宽.
        "=": "等",
    }
)
_SILENT = re.compile(r"[—《》【】<>{}()（）#&@“”_|\\]")
# A Greek letter by itself is a sign and has a name; in a Greek word it has none.
_GREEK_NAMES = {letter: name for letters, name in _GREEK.items() for letter in letters}
_GREEK_SIGN = re.compile(rf"(?<![\u0370-\u03ff])[{''.join(_GREEK_NAMES)}](?![\u0370-\u03ff])")
_BETWEEN_LETTERS = re.compile("(?<=[A-Za-z])/(?=[A-Za-z])")
_HALF_WIDTH = str.maketrans(
    {
        chr(code): chr(code - 0xFEE0)
        for start, stop in (("０", "９"), ("Ａ", "Ｚ"), ("ａ", "ｚ"))
        for code in range(ord(start), ord(stop) + 1)
    }
)

_NUMBER = r"(?:\d+(?:\.\d+)?|\.\d+)"
_THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])")
_MONEY = re.compile(rf"([￥¥$€£])({_NUMBER})([万亿千百]*)")
_DATE = re.compile(
    r"(\d{4}|\d{2})年(?:(0?[1-9]|1[0-2])月)?(?:(0?[1-9]|[12]\d|3[01])([日号]))?",
)
_YEAR_RANGE = re.compile(r"(?<!\d)(\d{4})-(?=\d{4}年)")
_DATE_OF_DIGITS = re.compile(r"(?<!\d)(\d{4})([-/.])(0?[1-9]|1[012])\2(0[1-9]|[12]\d|3[01]|[1-9])(?![\d.])")
_CLOCK = r"([01]?\d|2[0-3]):([0-5]\d)(?::([0-5]\d))?"
_TIME_RANGE = re.compile(rf"(?<!\d){_CLOCK}[-~]{_CLOCK}")
_TIME = re.compile(_CLOCK)
_RATIO = re.compile(r"(?<=\d):(?=\d)")
_MOBILE = re.compile(r"(?<!\d)(?:\+?86 ?)?1(?:[38]\d|5[0-35-9]|7[678]|9[89])\d{8}(?!\d)")
_SERVICE = re.compile(r"(?<!\d)[48]00-?\d{3}-?\d{4}(?!\d)")
_AREA_CODE = r"0(?:10|2\d|[3-9]\d{2})-?"
_TELEPHONE = re.compile(rf"(?<![\d.])(?:{_AREA_CODE})?[1-9]\d{{6,7}}(?![\d.%/])")
_OPERAND = r"(?:\d+(?:\.\d+)?|\.\d+|[A-Za-z])[⁰¹²³⁴⁵⁶⁷⁸⁹ˣʸⁿ]*"
_SUM = re.compile(rf"(?<![\d.]){_OPERAND}(?:[-+×÷=]-?{_OPERAND})+")
_OPERATOR = re.compile(r"(?<=[\w⁰¹²³⁴⁵⁶⁷⁸⁹ˣʸⁿ])[-+×÷=]")
_DEGREES = r"(?:°C|℃|度|摄氏度)"
_TEMPERATURE_RANGE = re.compile(rf"(?<![\d.])(-?)({_NUMBER}){_DEGREES}[-~](-?)({_NUMBER}){_DEGREES}")
_TEMPERATURE = re.compile(rf"(?<![\d.])(-?)({_NUMBER}){_DEGREES}")
# With ~ the models know no "to" before a unit that was put in words earlier (20~25度), and ～ is a pause to them.
_RANGE = re.compile(
    rf"(?<![\d.\-~～])(?:(-?)({_NUMBER})-(-?)({_NUMBER})({_DEGREES})?(?![-~～.]?\d)"
    rf"|(-)({_NUMBER})~(-?)({_NUMBER})({_DEGREES})?(?![-~～.]?\d)"
    rf"|()({_NUMBER})~(-?)({_NUMBER})()(?![-~～.]?\d|{_DEGREES}|[%％]))"
)
# 5kg~8kg: each end with its unit.
_UNIT_RANGE = re.compile(
    rf"(?<=\d)({_DEGREES}|[%％]|{'|'.join(re.escape(unit) for unit in _MEASURES)})~"
    rf"(?={_NUMBER}(?:{_DEGREES}|[%％]|{'|'.join(re.escape(unit) for unit in _MEASURES)}))"
)
_MEASURE = re.compile(rf"(?<=\d)({'|'.join(re.escape(unit) for unit in _MEASURES)})(?![A-Za-z])")
_POWER = re.compile(f"[{''.join(_SUPERSCRIPTS)}]+")
_FRACTION = re.compile(r"(?<!\d)(-?)(\d+)/(\d+)(?!/|\d)")
_PERCENT_RANGE = re.compile(rf"(?<![\d.])({_NUMBER})[%％]?-({_NUMBER})[%％]")
_PERCENTAGE = re.compile(rf"(?<![\d.])(-?)({_NUMBER})[%％]")
_NEGATIVE = re.compile(r"-(\d+(?:\.\d+)?)")
_VERSION = re.compile(r"(?<![\d.])\d+(?:\.\d+){2,}")
_DECIMAL = re.compile(r"\d+\.\d+|\.\d+")
_LONG_NUMBER = re.compile(r"\d{3,}")
_ANY_NUMBER = re.compile(r"\d+")


@cache
def word_lists() -> dict[str, frozenset[str]]:
    """PaddleSpeech's word lists: neutral, not_neutral, always_er, never_er, measure."""
    text = resources.files("gsv_core.text").joinpath("data/mandarin_words.json").read_text(encoding="utf-8")
    return {name: frozenset(words) for name, words in json.loads(text).items()}


@cache
def _simplified() -> dict[int, int]:
    text = resources.files("gsv_core.text").joinpath("data/simplified.txt").read_text(encoding="utf-8")
    _, traditional, simplified = text.splitlines()
    return str.maketrans(traditional, simplified)


@cache
def _counted() -> re.Pattern[str]:
    """Digits before a measure word, with what may stand between them and whether it is an ordinal."""
    listed, more = "|".join(word_lists()["measure"]), "|".join(MORE_COUNTED)
    return re.compile(rf"(第?)(?<!\d)(?:(\d+)([多余几+])?(?={listed})|(\d{{3,}}|\d+(?=\+))([多余几+])?(?={more}))")


def simplify(text: str) -> str:
    """Traditional characters to simplified ones, one to one; the length stays."""
    return text.translate(_simplified())


def digits_aloud(digits: str, one: str = "一") -> str:
    """Digit by digit; `one` is how 1 is said, 幺 on the telephone."""
    return "".join(one if digit == "1" else _DIGITS[int(digit)] for digit in digits)


def cardinal(digits: str) -> str:
    """A whole number in words: 13500000 is 一千三百五十万, 12 is 十二."""
    digits = digits.lstrip("0")
    if not digits:
        return "零"
    if len(digits) > _LONGEST_CARDINAL:
        return digits_aloud(digits)
    spoken = _grouped(digits)
    return spoken[1:] if spoken.startswith("一十") else spoken


def _grouped(digits: str) -> str:
    value = digits.lstrip("0")
    if not value:
        return ""
    gap = "零" if len(value) < len(digits) else ""
    for width, unit in _UNITS:
        if len(value) > width:
            return f"{gap}{_grouped(value[:-width])}{unit}{_grouped(value[-width:])}"
    return gap + _DIGITS[int(value)]


def number(text: str) -> str:
    """A whole number or a decimal in words; of the zeros at a decimal's end one is said."""
    whole, _, decimals = text.partition(".")
    spoken = cardinal(whole)
    kept = decimals.rstrip("0") + ("0" if decimals.endswith("0") else "")
    return f"{spoken}点{digits_aloud(kept)}" if kept else spoken


def _signed(sign: str, text: str, below_zero: str = "负") -> str:
    return (below_zero if sign else "") + number(text)


def _date(match: re.Match[str]) -> str:
    year, month, day, day_word = match.groups()
    return (
        f"{digits_aloud(year)}年"
        + (f"{cardinal(month)}月" if month else "")
        + (f"{cardinal(day)}{day_word}" if day else "")
    )


def _date_of_digits(match: re.Match[str]) -> str:
    year, _, month, day = match.groups()
    return f"{digits_aloud(year)}年{cardinal(month)}月{cardinal(day)}日"


def _two_digits(digits: str) -> str:
    return ("零" if digits.startswith("0") else "") + cardinal(digits)


def _clock(hour: str, minute: str, second: str | None, half: str = "30") -> str:
    spoken = f"{cardinal(hour)}点"
    if minute == half:
        spoken += "半"
    elif minute != "00":
        spoken += f"{_two_digits(minute)}分"
    if second and second != "00":
        spoken += f"{_two_digits(second)}秒"
    return spoken


def _time_range(match: re.Match[str]) -> str:
    hour, minute, second = match.groups()[3:]
    # The second half hour is 半 only after a first one, as the models know it.
    later = _clock(hour, minute, second, half="30" if match[2] == "30" else "")
    return f"{_clock(*match.groups()[:3])}至{later}"


def _telephone(text: str, one: str) -> str:
    return ",".join(digits_aloud(part, one) for part in re.findall(r"\d+", text))


def _sum(match: re.Match[str]) -> str:
    """Signs of a sum by word. Hyphens alone between numbers are a range or a label, not a subtraction."""
    text = match.group()
    if not re.search("[+×÷=A-Za-z]", text):
        return text
    return _OPERATOR.sub(lambda sign: _OPERATORS[sign.group()], text)


def _temperature_range(match: re.Match[str]) -> str:
    sign, low, other_sign, high = match.groups()
    return f"{_signed(sign, low, '零下')}度至{_signed(other_sign, high, '零下')}度"


def _range(match: re.Match[str]) -> str:
    first = next(index for index in (2, 7, 12) if match[index])
    sign, low, other_sign, high, degrees = match.group(*range(first - 1, first + 4))
    below_zero = "零下" if degrees else "负"
    return f"{_signed(sign, low, below_zero)}到{_signed(other_sign, high, below_zero)}{'度' if degrees else ''}"


def _count(match: re.Match[str]) -> str:
    ordinal, counted, more, measured, still_more = match.groups()
    # 第2个 is 第两个 too: no Chinese speaker says so, but the models have always been asked so.
    spoken = "两" if counted == "2" else cardinal(counted or measured)
    return ordinal + spoken + (more or still_more or "").replace("+", "多")


def spoken_text(text: str, *, one_on_telephone: str = "幺") -> str:
    """Simplified characters with every number and sign in words; marks are still those of the writer.

    Cantonese uses the same words but not 幺, so `one_on_telephone` is 一 there.
    """
    text = _THOUSANDS.sub(lambda match: match.group().replace(",", ""), text.translate(_HALF_WIDTH))
    text = _MONEY.sub(lambda match: f"{match[2]}{match[3]}{_CURRENCIES[match[1]]}", text)
    text = re.sub(r"[ \t\u3000\u00a0]+", "", text)
    text = _SILENT.sub("", text)
    text = simplify(text)
    text = _YEAR_RANGE.sub(lambda match: f"{digits_aloud(match[1])}到", text)
    text = _DATE.sub(_date, text)
    text = _DATE_OF_DIGITS.sub(_date_of_digits, text)
    text = _TIME_RANGE.sub(_time_range, text)
    text = _TIME.sub(lambda match: _clock(*match.groups()), text)
    text = _RATIO.sub("比", text)
    for pattern in (_MOBILE, _SERVICE):
        text = pattern.sub(lambda match: _telephone(match.group(), one_on_telephone), text)
    counted = _counted()
    text = _TELEPHONE.sub(
        lambda match: (
            match.group()
            if counted.match(match.string, match.start()) and not match.group().startswith("0")
            else _telephone(match.group(), one_on_telephone)
        ),
        text,
    )
    text = _SUM.sub(_sum, text)
    text = _UNIT_RANGE.sub(r"\1至", text)
    text = _TEMPERATURE_RANGE.sub(_temperature_range, text)
    text = _PERCENT_RANGE.sub(lambda match: f"百分之{number(match[1])}到百分之{number(match[2])}", text)
    text = _RANGE.sub(_range, text)
    text = _TEMPERATURE.sub(lambda match: f"{_signed(match[1], match[2], '零下')}度", text)
    text = _MEASURE.sub(lambda match: _MEASURES[match[1]], text)
    text = _POWER.sub(lambda match: f"的{''.join(_SUPERSCRIPTS[sign] for sign in match.group())}次方", text)
    text = _FRACTION.sub(lambda match: f"{'负' if match[1] else ''}{number(match[3])}分之{number(match[2])}", text)
    text = _PERCENTAGE.sub(lambda match: f"{'负' if match[1] else ''}百分之{number(match[2])}", text)
    text = _NEGATIVE.sub(lambda match: f"负{match[1]}", text)
    text = _VERSION.sub(lambda match: "点".join(digits_aloud(part) for part in match.group().split(".")), text)
    text = _DECIMAL.sub(lambda match: number(match.group()), text)
    text = counted.sub(_count, text)
    text = _LONG_NUMBER.sub(lambda match: digits_aloud(match.group(), one_on_telephone), text)
    text = _ANY_NUMBER.sub(lambda match: cardinal(match.group()), text)
    text = _GREEK_SIGN.sub(lambda match: _GREEK_NAMES[match.group()], text)
    return _BETWEEN_LETTERS.sub(",", text).translate(_LAST_SIGNS)
