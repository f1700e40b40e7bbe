import subprocess
import sys

import pytest

from gsv_core.text.korean import read


def phonemes(text: str) -> str:
    return "".join(read(text).phonemes)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("안녕하세요", "ㅇㅏㄴㄴㅣㅓㅇㅎㅏㅅㅔㅇㅣㅗ."),
        ("같이", "ㄱㅏㅊㅣ."),  # palatalised
        ("국물이", "ㄱㅜㅇㅁㅜㄹㅣ."),  # nasalised, linked
        ("신라", "ㅅㅣㄹㄹㅏ."),
        ("사과 3개", "ㅅㅏㄱㅗㅏ空ㅅㅔㄱㅐ."),
        ("TV", "ㅌㅣㅂㅡㅇㅣ."),
        ("왜?", "ㅇㅗㅐ?"),
        ("ㅋㅋ ㅠㅠ", "ㅋㅋ空ㅣㅜㅣㅜ."),
    ],
)
def test_spoken_jamo(text, expected):
    assert phonemes(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # upstream reads the point as a full stop
        ("3.5", "ㅅㅏㅁㅈㅓㅁㅗ."),
        # upstream makes the sign a dash that nobody hears
        ("-3도", "ㅇㅣㅓㅇㅎㅏ空ㅅㅏㅁㄷㅗ."),
        ("합은 -3", "ㅎㅏㅂㅡㄴ空ㅁㅏㅇㅣㄴㅓㅅㅡ空ㅅㅏㅁ."),
        # brackets are symbols of pitch in the inventory and must not pass through
        ("[나]", "停ㄴㅏ停"),
    ],
)
def test_better_than_upstream(text, expected):
    assert phonemes(text) == expected


def test_more_than_sixteen_digits_are_read_one_by_one():
    assert phonemes("1" * 20) == phonemes("일" * 20)


@pytest.mark.parametrize("seed", ["0", "1", "2"])
def test_0_and_100_degrees_do_not_depend_on_the_hash_seed(seed):
    code = "from gsv_core.text.korean import read; print(''.join(read('0도에서 100도까지').phonemes))"
    answer = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "ㅇㅣㅓㅇㄷㅗㅇㅔㅅㅓ空ㅂㅐㄱㄸㅗㄲㅏㅈㅣ."


def test_the_real_g2pk2_stays_importable():
    read("하나")
    assert "g2pk2" not in sys.modules or hasattr(sys.modules["g2pk2"], "G2p")
