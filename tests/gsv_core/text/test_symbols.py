import json

import pytest

from gsv_core.text.symbols import SYMBOLS_V1, SYMBOLS_V2, UNKNOWN, ids_of, inventory, known
from tests.shared import shared_path


def test_inventories_have_the_sizes_of_the_published_models():
    assert len(SYMBOLS_V1) == 322
    assert len(SYMBOLS_V2) == 732
    assert SYMBOLS_V2[:322] == SYMBOLS_V1
    assert len(set(SYMBOLS_V2)) == len(SYMBOLS_V2)


@pytest.mark.parametrize(
    ("symbol", "number"), [("UNK", 86), ("SP", 77), ("SP2", 78), ("_", 95), ("[", 322), ("]", 323)]
)
def test_ids_are_the_published_ones(symbol, number):
    assert SYMBOLS_V2.index(symbol) == number


@pytest.mark.parametrize("release", ["v1", "v2"])
def test_inventory_equals_the_record(release):
    record = json.loads(shared_path(f"golden/text/symbols_{release}.json").read_text(encoding="utf-8"))
    assert list(inventory(release)) == record["symbols"]


def test_a_symbol_that_came_with_v2_is_unknown_to_v1():
    assert ids_of(["AA0", "["], "v2") == (6, 322)
    assert ids_of(["AA0", "["], "v1") == (6, 86)
    assert known(["AA0", "[", "??"], "v1") == ("AA0", UNKNOWN, UNKNOWN)


def test_unknown_release_is_refused():
    with pytest.raises(ValueError, match="v9"):
        inventory("v9")
    with pytest.raises(ValueError, match="v9"):
        ids_of(["AA0"], "v9")
