import torch

from gsv_core.training.draws import generator_of
from gsv_core.training.preference import damaged


def test_a_stretch_is_said_twice_or_left_out():
    tokens = torch.arange(20)
    longer = shorter = 0
    for number in range(60):
        row = damaged(tokens, generator_of(number)).tolist()
        if len(row) > 20:
            longer += 1
            again = next(place for place in range(1, len(row)) if row[place] <= row[place - 1])
            assert row[:again] == list(range(again))
            assert row[again:] == list(range(row[again], 20))
        else:
            shorter += 1
            assert 0 < len(row) < 20
            assert row == sorted(set(row))
            missing = sorted(set(range(20)) - set(row))
            assert missing == list(range(missing[0], missing[-1] + 1))
    assert longer > 15
    assert shorter > 15


def test_the_shortest_clips_are_damaged_too():
    for length in (1, 2):
        for number in range(20):
            row = damaged(torch.arange(length), generator_of(number))
            assert len(row) > 0
            assert row.tolist() != list(range(length))


def test_the_same_draw_damages_alike():
    tokens = torch.arange(30)
    assert torch.equal(damaged(tokens, generator_of("a")), damaged(tokens, generator_of("a")))
