import pytest

from gsv_core.text.english import pronounce, read
from gsv_core.text.english_normalisation import cardinal, normalise, ordinal, year
from gsv_core.text.english_tags import tag_words


def phonemes(text: str) -> str:
    return " ".join(read(text).phonemes)


@pytest.mark.parametrize(
    ("digits", "words"),
    [
        ("0", "zero"), ("7", "seven"), ("48250", "forty-eight thousand, two hundred fifty"),
        ("2500000", "two million, five hundred thousand"), ("100", "one hundred"), ("1000001", "one million one"),
        ("7045", "seven thousand forty-five"), ("1001001", "one million, one thousand one"),
    ],
)  # fmt: skip
def test_cardinals(digits, words):
    assert cardinal(digits) == words


def test_years_and_ordinals():
    assert [year(digits) for digits in ("1906", "2000", "2007", "1100", "1382", "2031")] == [
        "nineteen oh six", "two thousand", "two thousand seven", "eleven hundred", "thirteen eighty-two",
        "twenty thirty-one",
    ]  # fmt: skip
    assert [ordinal(digits) for digits in ("1", "22", "12", "20", "100", "101", "1051")] == [
        "first", "twenty-second", "twelfth", "twentieth", "one hundredth", "one hundred and first",
        "one thousand and fifty-first",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("$6.24", "six dollars and twenty-four cents"),
        ("$0.99", "ninety-nine cents"),
        ("$1 and $0.01", "one dollar and one cent"),
        ("20$ or 15£", "twenty dollars or fifteen pounds"),
        ("3.14159.", "three point one four one five nine."),
        ("2/3 cup", "two thirds cup"),
        ("$1.2.3", "one point two point three"),
        ("No.5 and .5", "No. five and zero point five"),
        ("1. mix 2. Bake", "first, mix two. Bake"),
        ("6/1", "six"),
        ("1/120 s", "one one hundred and twentieth s"),
        ("120s long", "one hundred twenty seconds long"),
        ("in the 1990s", "in the nineteen nineties"),
        ("$3,200,000, while", "three million, two hundred thousand dollars, while"),
        ("25m and 1tsp", "twenty-five meters and one teaspoon"),
        ("100°C", "one hundred degrees celsius"),
        ("2 + 3 = 5", "two plus three Equals five"),
        ("1. Open it. 2. Close it.", "first, Open it. second, Close it."),
        ("e.g. apples", "for example apples"),
        ("The NASA", "The N A S A"),
        ("café", "cafe"),
        ("Stop!!!", "Stop!"),
    ],
)
def test_in_words(text, words):
    assert normalise(text)[0] == words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        # upstream reads amounts between 1001 and 2999 like years
        ("$1,299.00", "one thousand, two hundred ninety-nine dollars"),
        ("1,024 stars", "one thousand twenty-four stars"),
        # upstream glues the words together
        ("is -15", "is negative fifteen"),
        ("B12", "B twelve"),
        ("today—finally", "today, finally"),
        # upstream deletes these marks
        ("so; maybe: yes", "so, maybe, yes"),
        ("Hello，world。", "Hello, world."),
        ("It’s", "It's"),
        ("job 👍!", "job!"),
        # upstream: "drive", "twenty-four sevenths", "nine thirty a.m. a.m."
        ("Dr. Smith", "Doctor Smith"),
        ("open 24/7", "open twenty-four seven"),
        ("9:30 a.m. daily", "nine thirty A M daily"),
        ("at 5 p.m. She", "at five P M. She"),
        # upstream: "four five a.m.", "twelve o'clock p.m.", "zero fifteen a.m.", each with full stops
        ("at 4:05 or 13:30", "at four oh five or one thirty P M"),
        ("at 12:00 sharp", "at twelve o'clock sharp"),
        ("at 0:15 or 19:00", "at twelve fifteen A M or seven P M"),
        # upstream: "forty-two", "twenty ten seconds"
        ("code 0042", "code zero zero four two"),
        ("the 2010s", "the twenty tens"),
        # upstream: "Btwelve", "Cthree P O"
        ("C3PO", "C three P O"),
        # upstream spells them, taking every capital for a word
        ("McDonald", "McDonald"),
        ("sHoUt iT", "s Ho Ut i T"),
        # upstream runs the words together
        ("tabs\there", "tabs here"),
        ("30km/h", "thirty kilometers per hour"),
        ("2029-03-08", "March eighth, twenty twenty-nine"),
        ("blue - in order", "blue, in order"),
        ("O'Brien", "O'Brien"),
        ("THIS IS ALL UPPERCASE TEXT", "this is all uppercase text"),
        ("Line one\nLine two", "Line one, Line two"),
        ("555-0123", "five five five, zero one two three"),
        ("$5 million", "five million dollars"),
        ("2½ cups", "two and one half cups"),
    ],
)
def test_better_than_upstream(text, words):
    assert normalise(text)[0] == words


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("kettle", "K EH1 T AH0 L"),
        ("zero", "Z IY1 R OW0"),
        ("Kettle", "K EH1 T AH0 L"),
        ("gpu", "JH IY1 P IY1 Y UW1"),
        ("ai", "EY1 AY1"),
        ("zorblat", "Z AO1 R B L AA1 T"),
        ("zorblat's", "Z AO1 R B L AA1 T S"),
        ("superapp", "S UW1 P ER0 AE1 P"),
        # upstream asks its network, which knows no hyphen, and says "ther-tee-toe", "uh-t-poh-tuhd"
        ("thirty-two", "TH ER1 D IY2 T UW1"),
        ("up-to-date", "AH1 P T UW1 D EY1 T"),
    ],
)
def test_pronounce_known_spelled_guessed_and_cut(word, expected):
    assert " ".join(pronounce(word)) == expected


def test_pronounce_answers_for_anything():
    assert pronounce("") == ()
    assert pronounce("123") == ()
    assert len(pronounce("x" * 500)) > 100


def test_homographs_by_part_of_speech():
    assert phonemes("She will present the present.") == "SH IY1 W IH1 L P R IY0 Z EH1 N T DH AH0 P R EH1 Z AH0 N T ."
    assert phonemes("I have read it.") == "AY1 HH AE1 V R EH1 D IH1 T ."
    assert phonemes("I will read it.") == "AY1 W IH1 L R IY1 D IH1 T ."
    assert tag_words(["The", "dog", "will", "record", "every", "record", "."]) == [
        "DT",
        "NN",
        "MD",
        "VB",
        "DT",
        "NN",
        ".",
    ]


def test_single_letters():
    assert phonemes("A dog and a cat.").startswith("EY1 D AO1 G AH0 N D AH0")


def test_very_short_texts_get_a_pause_in_front():
    assert phonemes("Hi.") == ", HH AY1 ."


def test_lost_letters_are_reported():
    assert read("hello мир").dropped == "мир"
