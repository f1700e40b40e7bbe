"""Phonemes to ids and back: the ordered inventories that the published base models were trained with.

An id is the position in the list. The list of v2 begins with that of v1; `data/symbols.txt` holds it, one a line.
"""

from collections.abc import Iterable, Mapping
from importlib import resources

PAD = "_"
UNKNOWN = "UNK"
# The six marks, each of them one phoneme: a pause or a tone of voice.
MARKS = frozenset("!?…,.-")

_V1_COUNT = 322


def _read_symbols() -> tuple[str, ...]:
    text = resources.files("gsv_core.text").joinpath("data/symbols.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


SYMBOLS_V2 = _read_symbols()
SYMBOLS_V1 = SYMBOLS_V2[:_V1_COUNT]

_INVENTORIES: Mapping[str, tuple[str, ...]] = {"v1": SYMBOLS_V1, "v2": SYMBOLS_V2}
_IDS = {release: {symbol: index for index, symbol in enumerate(names)} for release, names in _INVENTORIES.items()}


def inventory(release: str) -> tuple[str, ...]:
    """The symbols of `release` in the order of their ids.

    Raises:
        ValueError: there is no such inventory.
    """
    if release not in _INVENTORIES:
        raise ValueError(f"no symbols for release {release!r}: the inventories are {', '.join(_INVENTORIES)}")
    return _INVENTORIES[release]


def known(phonemes: Iterable[str], release: str) -> tuple[str, ...]:
    """`phonemes` with each that the inventory lacks replaced by `UNKNOWN`."""
    ids = _IDS[release] if release in _IDS else dict.fromkeys(inventory(release))
    return tuple(phoneme if phoneme in ids else UNKNOWN for phoneme in phonemes)


def ids_of(phonemes: Iterable[str], release: str) -> tuple[int, ...]:
    """(P,) ids of `phonemes`; what the inventory lacks gets the id of `UNKNOWN`."""
    inventory(release)
    ids = _IDS[release]
    return tuple(ids.get(phoneme, ids[UNKNOWN]) for phoneme in phonemes)
