import pytest
import torch

from gsv_core.synthesis.blending import Share, blend, normalised


def test_shares_are_read_and_brought_to_one_the_largest_first():
    shares = normalised([Share.parse("anna:1"), Share.parse("ben:3")])
    assert [(share.voice, share.weight) for share in shares] == [("ben", 0.75), ("anna", 0.25)]
    equal = normalised([Share.parse("anna"), Share.parse("ben")])
    assert [(share.voice, share.weight) for share in equal] == [("anna", 0.5), ("ben", 0.5)]


@pytest.mark.parametrize("text", ["anna:", "anna:much", "anna:0", "anna:-1", "anna:nan", "anna:inf"])
def test_what_is_no_share_is_named(text):
    with pytest.raises(ValueError, match=f"'{text}': expected VOICE:SHARE"):
        Share.parse(text)


@pytest.mark.parametrize("names", [["anna"], ["anna", "anna"], []])
def test_a_blend_needs_two_voices(names):
    with pytest.raises(ValueError, match="two voices or more, each once"):
        normalised([Share.parse(name) for name in names])


def test_a_blend_lies_between_its_timbres_by_their_shares():
    timbres = {"anna": torch.tensor([0.0, 4.0]), "ben": torch.tensor([2.0, 0.0])}
    shares = normalised([Share.parse("anna:3"), Share.parse("ben:1")])
    torch.testing.assert_close(blend(timbres, shares), torch.tensor([0.5, 3.0]))
    with pytest.raises(ValueError, match="different releases"):
        blend(timbres | {"ben": torch.zeros(3)}, shares)
