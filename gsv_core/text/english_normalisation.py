"""Written English to spoken English: numbers, times, money, units, fractions and signs become words.

The wording is that of the data the published models saw ("forty-eight thousand, two hundred fifty": no "and", its
commas are pauses; a bare number from 1001 to 2999 like a year), except where that was a mistake.
"""

import re
import unicodedata

_ONES = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS = ["-", "-", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_SCALES = ("", "thousand", "million", "billion", "trillion", "quadrillion", "quintillion")
_ORDINALS = {
    "one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth",
    "twelve": "twelfth",
}  # fmt: skip
_LONGEST_CARDINAL = 3 * len(_SCALES)
_MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
# Abbreviation -> one, many.
_UNITS = {
    "km/h": ("kilometer per hour", "kilometers per hour"),
    "mph": ("mile per hour", "miles per hour"),
    "km": ("kilometer", "kilometers"),
    "cm": ("centimeter", "centimeters"),
    "mm": ("millimeter", "millimeters"),
    "m": ("meter", "meters"),
    "ft": ("foot", "feet"),
    "kg": ("kilogram", "kilograms"),
    "mg": ("milligram", "milligrams"),
    "g": ("gram", "grams"),
    "lbs": ("pound", "pounds"),
    "lb": ("pound", "pounds"),
    "oz": ("ounce", "ounces"),
    "ml": ("milliliter", "milliliters"),
    "L": ("liter", "liters"),
    "tbsp": ("tablespoon", "tablespoons"),
    "tsp": ("teaspoon", "teaspoons"),
    "hrs": ("hour", "hours"),
    "h": ("hour", "hours"),
    "min": ("minute", "minutes"),
    "ms": ("millisecond", "milliseconds"),
    "s": ("second", "seconds"),
    "°C": ("degree celsius", "degrees celsius"),
    "°F": ("degree fahrenheit", "degrees fahrenheit"),
    "°": ("degree", "degrees"),
}
# Sign -> (unit, units, part of it, parts).
_CURRENCIES = {
    "$": ("dollar", "dollars", "cent", "cents"),
    "£": ("pound", "pounds", "penny", "pence"),
    "€": ("euro", "euros", "cent", "cents"),
    "¥": ("yen", "yen", "", ""),
}
_TITLES = {"Dr": "Doctor", "St": "Saint"}
_OPERATORS = {"+": "plus", "-": "minus", "−": "minus", "×": "times", "÷": "divided by", "=": "Equals"}
_SIGNS = {
    "’": "", "‘": "", "ʼ": "'", "`": "", "´": "", "/": " ", "_": " ",
    "，": ", ", "、": ", ", "；": ", ", "：": ", ", "。": ". ", "！": "! ", "？": "? ",
    ";": ",", ":": ",", "—": ", ", "–": ", ", "―": ", ", "·": ", ",
    "…": "... ", "‐": "-", "‑": "-", "\u00a0": " ", "\u3000": " ", "\t": " ", "\r": " ",
}  # fmt: skip

_MAGNITUDE = r"(?: (thousand|million|billion|trillion))?"
_AMOUNT = r"\d+(?:,\d+)*(?:\.\d+)?"
_LIST_ITEM = re.compile(r"(?:(?:^|(?<=\n))(\d{1,3})\. (?=[A-Za-z])|(?<=[.!?,] )(\d{1,3})\. (?=[A-Z]))")
_DATE = re.compile(r"\b(\d{4})-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])\b")
_ALWAYS_OPEN = re.compile(r"\b24/7\b")
_SUM = re.compile(r"(?<![^\s(])(\d[\d,.]*|[A-Za-z]) ([-+×÷=−]) (?=-?\d|[A-Za-z]\b)")
_SPACED_DASH = re.compile(r"\s+[-−]+\s+")
_THOUSANDS = re.compile(r"(?<![\d.,])(\d{1,3}(?:,\d{3})+)(?![\d,])")
_TIME = re.compile(r"\b(\d{1,2}):([0-5]\d)(?::([0-5]\d))?(?:\s*([aApP])\.?[mM]\b\.?)?")
_HOUR = re.compile(r"\b(\d{1,2})\s*([aApP])\.?[mM]\b\.?")
_MONEY_BEFORE = re.compile(rf"([$£€¥])\s?({_AMOUNT})(?!\.?\d){_MAGNITUDE}")
_MONEY_AFTER = re.compile(rf"(?<![\d.,])({_AMOUNT})\s?([$£€¥])")
# With a blank before them the short ones may be anything: "5 m" is rare, "5 s" is not always seconds.
_LONG_UNITS = "|".join(
    re.escape(unit) for unit in _UNITS if len(unit) > 1 and unit not in ("ft", "lb", "oz", "min", "hrs")
)
_ALL_UNITS = "|".join(re.escape(unit) for unit in _UNITS)
_UNIT = re.compile(rf"(?<![\d.,])(-?)({_AMOUNT})(?: (?={_LONG_UNITS}))?({_ALL_UNITS})(?![A-Za-z°])")
_DECADE = re.compile(r"(?:\b([12]\d\d0)|(?<=\bthe )(\d0))'?s\b")
_TELEPHONE = re.compile(r"(?<![\d-])(?:\+?1[- ])?(?:\(\d{3}\) ?|\d{3}-)?\d{3}-\d{4}(?![\d-])")
_PERCENT = re.compile(r"\s?[%％]")
_NEGATIVE = re.compile(r"(?:(?<=^)|(?<=[\s(]))[-−](?=\.?\d)")
_SPAN = re.compile(r"(?<=\d)[-–](?=\d)")
_DECIMAL = re.compile(r"(?<![\d.])(?:\d[\d,]*|(?<![A-Za-z]))\.\d+(?!\.?\d)")
_NUMBER_SIGN = re.compile(r"(?<=[A-Za-z]\.)(?=\d)")
_VERSION = re.compile(r"(?<![\d.])\d+(?:\.\d+){2,}")
_FRACTION = re.compile(r"(?<![\d/])(\d+)/(\d+)(?![\d/])")
_ORDINAL = re.compile(r"(?<!\d)(\d+)(?:st|nd|rd|th)\b", re.IGNORECASE)
_NUMBER = re.compile(r"\d+")
_BESIDE_LETTER = re.compile(r"(?<=[A-Za-z])(?=\d)|(?<=\d)(?=[A-Za-z])")
_TITLE = re.compile(rf"\b({'|'.join(_TITLES)})\.(?= [A-Z])")
_NOT_SPOKEN = re.compile(r"[^ A-Za-z'.,?!\-]")
_WORTH_NAMING = re.compile(r"[^\W_]")
# O'Brien and McDonald are one word; any other capital inside one begins the next (iPhone, ChatGPT, NASA).
_CAPITAL = re.compile(r"(?<=\S)(?<!\bO')(?<!\bMc)(?=[A-Z])")
_APOSTROPHE = re.compile("(?<=[A-Za-z])[’‘](?=[A-Za-z])")
_MARKS_IN_A_ROW = re.compile(r"([.,?!\-])(?:\s*[.,?!])+|([,.?!])-+")
_MARK_AFTER_BLANK = re.compile(r"\s+(?=[,.?!])")


def _below_thousand(value: int, joint: str = "") -> str:
    hundreds, rest = divmod(value, 100)
    words = [f"{_ONES[hundreds]} hundred"] if hundreds else []
    if hundreds and rest and joint:
        words.append(joint)
    if rest >= 20:
        tens, ones = divmod(rest, 10)
        words.append(_TENS[tens] + (f"-{_ONES[ones]}" if ones else ""))
    elif rest or not hundreds:
        words.append(_ONES[rest])
    return " ".join(words)


def cardinal(digits: str, joint: str = "") -> str:
    """A whole number in words, a comma after each group of three: "forty-eight thousand, two hundred fifty".

    A last group below a hundred follows without one: "seven thousand forty-five". `joint` is what Britons put there.
    """
    digits = digits.replace(",", "")
    if len(digits.lstrip("0")) > _LONGEST_CARDINAL:
        return " ".join(_ONES[int(digit)] for digit in digits)
    value = int(digits)
    if value == 0:
        return "zero"
    above, last = divmod(value, 1000)
    groups = []
    for scale in _SCALES[1:]:
        above, group = divmod(above, 1000)
        if group:
            groups.append(f"{_below_thousand(group, joint)} {scale}")
    words = ", ".join(reversed(groups))
    if not last:
        return words
    gap = "" if not words else ", " if last >= 100 else f" {joint} " if joint else " "
    return words + gap + _below_thousand(last, joint)


def year(digits: str) -> str:
    """A number from 1001 to 2999 in pairs: nineteen oh six, eleven hundred, two thousand seven."""
    century, rest = divmod(int(digits), 100)
    if century == 20 and rest < 10:
        return "two thousand" + (f" {_ONES[rest]}" if rest else "")
    if rest == 0:
        return f"{_below_thousand(century)} hundred"
    return f"{_below_thousand(century)} {'oh ' if rest < 10 else ''}{_below_thousand(rest)}"


def ordinal(digits: str) -> str:
    """twenty-second, one hundredth, one hundred and first."""
    words = cardinal(digits, "and")
    start = max(words.rfind(" "), words.rfind("-")) + 1
    last = words[start:]
    if last in _ORDINALS:
        last = _ORDINALS[last]
    else:
        last = f"{last[:-1]}ieth" if last.endswith("y") else f"{last}th"
    return words[:start] + last


def _plain_number(digits: str) -> str:
    if len(digits) > 1 and digits.startswith("0"):
        return " ".join(_ONES[int(digit)] for digit in digits)
    return year(digits) if len(digits) == 4 and 1000 < int(digits) < 3000 else cardinal(digits)


def _amount(text: str) -> str:
    """A number with or without decimals; never like a year."""
    whole, point, decimals = text.partition(".")
    words = cardinal(whole or "0")
    return f"{words} point {' '.join(_ONES[int(digit)] for digit in decimals)}" if point else words


def _is_one(text: str) -> bool:
    return text.replace(",", "").lstrip("0") == "1"


def _date(match: re.Match[str]) -> str:
    return f"{_MONTHS[int(match[2]) - 1]} {ordinal(match[3])}, {_plain_number(match[1])}"


def _telephone(match: re.Match[str]) -> str:
    groups = re.findall(r"\d+", match.group())
    return ", ".join(" ".join(_ONES[int(digit)] for digit in group) for group in groups)


def _half_of_day(letter: str) -> str:
    return f" {letter.upper()} M"


def _time(match: re.Match[str]) -> str:
    hour, minute, half = int(match[1]), match[2], match[4]
    if hour > 24:
        return match.group()
    if not half and (hour > 12 or hour == 0):
        half = "p" if 12 < hour < 24 else "a"
    words = cardinal(str((hour - 1) % 12 + 1))
    if minute == "00":
        words += "" if half else " o'clock"
    else:
        words += f" {'oh ' if minute.startswith('0') else ''}{cardinal(minute)}"
    if match[3] and match[3] != "00":
        words += f" and {cardinal(match[3])} seconds"
    return words + (_half_of_day(half) if half else "") + _kept_stop(match)


def _kept_stop(match: re.Match[str]) -> str:
    """The full stop of "p.m." that also ends the sentence."""
    following = match.string[match.end() : match.end() + 8].lstrip()
    return "." if match.group().endswith(".") and (not following or following[0].isupper()) else ""


def _hour(match: re.Match[str]) -> str:
    return cardinal(match[1]) + _half_of_day(match[2]) + _kept_stop(match)


def _money(sign: str, amount: str, magnitude: str | None) -> str:
    one, many, part, parts = _CURRENCIES[sign]
    if magnitude:
        return f"{_amount(amount)} {magnitude} {many}"
    whole, _, decimals = amount.replace(",", "").partition(".")
    hundredths = decimals.ljust(2, "0") if part and len(decimals) <= 2 else ""
    if decimals and not hundredths:
        return f"{_amount(amount)} {many}"
    said = []
    if int(whole) or not int(hundredths or 0):
        said.append(f"{cardinal(whole)} {one if _is_one(whole) else many}")
    if int(hundredths or 0):
        said.append(f"{cardinal(hundredths)} {part if int(hundredths) == 1 else parts}")
    return " and ".join(said)


def _unit(match: re.Match[str]) -> str:
    sign, amount, unit = match.groups()
    one, many = _UNITS[unit]
    return f"{'negative ' if sign else ''}{_amount(amount)} {one if _is_one(amount) else many}"


def _decade(match: re.Match[str]) -> str:
    words = _plain_number(match[1] or match[2])
    return f"{words[:-1]}ies" if words.endswith("y") else f"{words}s"


def _fraction(match: re.Match[str]) -> str:
    above, below = match.groups()
    if int(below) == 0:
        return f"{cardinal(above)} over {cardinal(below)}"
    words = cardinal(above, "and")
    plural = "s" if int(above) > 1 else ""
    if int(below) == 2:
        return f"{words} {'halves' if plural else 'half'}"
    return words if int(below) == 1 else f"{words} {ordinal(below)}{plural}"


def _spell_numbers(text: str) -> str:
    text = _LIST_ITEM.sub(lambda match: f"{ordinal(match[1] or match[2])}, ", text)
    text = _DATE.sub(_date, text)
    text = _TELEPHONE.sub(_telephone, text)
    text = _ALWAYS_OPEN.sub("twenty-four seven", text)
    text = _SUM.sub(lambda match: f"{match[1]} {_OPERATORS[match[2]]} ", text)
    text = _TIME.sub(_time, text)
    text = _HOUR.sub(_hour, text)
    text = _MONEY_BEFORE.sub(lambda match: _money(match[1], match[2], match[3]), text)
    text = _MONEY_AFTER.sub(lambda match: _money(match[2], match[1], None), text)
    text = _DECADE.sub(_decade, text)
    text = _UNIT.sub(_unit, text)
    text = _PERCENT.sub(" percent", text)
    text = _NEGATIVE.sub("negative ", text)
    text = _VERSION.sub(lambda match: " point ".join(cardinal(part) for part in match.group().split(".")), text)
    text = _DECIMAL.sub(lambda match: _amount(match.group()), text)
    text = _NUMBER_SIGN.sub(" ", text)
    text = _SPAN.sub(" to ", text)
    text = _FRACTION.sub(_fraction, text)
    text = _THOUSANDS.sub(lambda match: cardinal(match[1]), text)
    text = _ORDINAL.sub(lambda match: ordinal(match[1]), text)
    text = _BESIDE_LETTER.sub(" ", text)
    return _NUMBER.sub(lambda match: _plain_number(match.group()), text)


def _join_capitals(text: str) -> str:
    """Capitals that only shout are made small; those of an acronym stay and get spelled.

    A text with no small letter at all, three words or more, shouts.
    """
    words = re.findall(r"[^\W\d_]+", text)
    return text.lower() if len(words) > 2 and text.isupper() and sum(len(word) for word in words) > 12 else text


def _plain_letters(text: str) -> str:
    """Letters without accents, figures and fractions in ASCII; marks of every width stay as they are."""
    signs = {"²": " squared", "³": " cubed", "°": "°", **{sign: sign for sign in _SIGNS}}
    decomposed = "".join(signs.get(sign) or unicodedata.normalize("NFKD", sign) for sign in text)
    return "".join(sign for sign in decomposed if not unicodedata.combining(sign)).replace("⁄", "/")


def normalise(text: str) -> tuple[str, str]:
    """(the text as it is spoken: letters, blanks, apostrophes and marks; the characters that were lost)."""
    text = re.sub(r" ?\n[ \n]*", "\n", re.sub(r"[^\S\n]+", " ", text))
    text = _plain_letters(re.sub(r"(?<=\d)(?=[¼-¾⅐-⅞])", " and ", text))
    text = _TITLE.sub(lambda match: _TITLES[match[1]], text)
    text = _spell_numbers(text)
    text = re.sub(r"(?<![.,?!;:\n])\n", ", ", text.strip("\n")).replace("\n", " ")
    text = _APOSTROPHE.sub("'", _SPACED_DASH.sub(", ", text))
    text = "".join(_SIGNS.get(character, character) for character in text)
    text = text.replace("i.e.", "that is").replace("e.g.", "for example")
    text = _join_capitals(text)
    lost = "".join(dict.fromkeys(mark for mark in text if _NOT_SPOKEN.match(mark) and _WORTH_NAMING.match(mark)))
    text = _CAPITAL.sub(" ", _NOT_SPOKEN.sub("", text))
    text = _MARK_AFTER_BLANK.sub("", text)
    text = _MARKS_IN_A_ROW.sub(lambda match: match[1] or match[2], text)
    return re.sub(r"\s+", " ", text).strip(), lost
