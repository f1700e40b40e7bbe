from pipelines.board import MOST_DEATHS, Board, Place

HERE, THERE = Place("slice", 0, "/a.wav"), Place("slice", 1, "/b.wav")


def test_rows_add_up() -> None:
    board = Board()
    board.add("slice", 2)
    board.add("slice", 3)
    assert board.read() == {"slice": 5}


def test_places_are_asked_for_after_a_death_only() -> None:
    board = Board()
    assert not board.begin("unit").report_places
    assert board.begin("unit").report_places
    assert not board.begin("another").report_places


def test_the_row_that_kills_three_times_in_one_place_is_found() -> None:
    board = Board()
    board.begin("unit")
    for _ in range(MOST_DEATHS):
        assert not board.begin("unit").deadly
        board.at("unit", THERE)
        board.at("unit", HERE)
    assert board.begin("unit").deadly == (HERE,)
    for _ in range(MOST_DEATHS):
        board.at("unit", THERE)
        orders = board.begin("unit")
    assert orders.deadly == (HERE, THERE)


def test_deaths_in_different_places_blame_nobody() -> None:
    board = Board()
    board.begin("unit")
    for number in range(20):
        assert not board.begin("unit").deadly
        board.at("unit", Place("slice", number, "/a.wav"))


def test_a_unit_that_ended_starts_afresh() -> None:
    board = Board()
    board.begin("unit")
    board.begin("unit")
    board.end("unit")
    assert not board.begin("unit").report_places


def test_a_board_that_was_killed_and_started_again_learns_the_place_anew() -> None:
    board = Board()  # knows nothing of a unit that is under way
    board.at("unit", HERE)
    for _ in range(MOST_DEATHS):
        orders = board.begin("unit")
        board.at("unit", HERE)
    assert orders.deadly == (HERE,)
