import torch

from gsv_core.training.draws import generator_of, seeded, stable_seed


def test_a_seed_follows_from_its_parts_alone():
    assert stable_seed(1, "anna", "wave", 3, "order") == 2_664_698_126_318_313_722
    assert stable_seed(1, "ab", "c") != stable_seed(1, "a", "bc")
    first, second = (torch.rand(3, generator=generator_of(7, "anna")) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, torch.rand(3, generator=generator_of(8, "anna")))


def test_seeding_torchs_own_state_ends_with_the_block():
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    with seeded(5, "dropout", device=torch.device("cpu")):
        inside = torch.rand(2)
    assert torch.equal(torch.rand(2), expected)
    with seeded(5, "dropout", device=torch.device("cpu")):
        assert torch.equal(torch.rand(2), inside)
