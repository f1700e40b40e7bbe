import pickle
import zipfile

import pytest
import torch

from gsv_core.checkpoints.upstream import load_strictly, read_weights
from tests.shared import shared_path


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("s1_demo-e4.ckpt", "model.bert_proj.weight"),
        ("s2_v2_demo_e8_s16.pth", "dec.conv_pre.weight"),
        ("s2_v2Pro_demo_e8_s16.pth", "sv_emb.weight"),
        ("s2_v2ProPlus_demo_e8_s16.pth", "sv_emb.weight"),
        ("s2G_base_style.pth", "enc_q.pre.weight"),
        ("s2D_base_style.pth", "discriminators.0.conv_post.bias"),
    ],
)
def test_files_as_gpt_sovits_writes_them_are_read(name, tensor):
    weights = read_weights(shared_path("golden/models/ckpt") / name)
    assert weights[tensor].dtype == torch.float32
    assert torch.isfinite(weights[tensor]).all()


def test_a_bare_state_dict_is_all_weights(tmp_path):
    torch.save({"a": torch.ones(2, dtype=torch.float16), "n": torch.tensor(3)}, tmp_path / "bare.pth")
    weights = read_weights(tmp_path / "bare.pth")
    assert weights["a"].dtype == torch.float32
    assert weights["n"].dtype == torch.int64


class _Runs:
    def __reduce__(self):
        return (print, ("executed",))


def test_a_file_that_asks_for_a_function_is_refused_by_its_name(tmp_path, capsys):
    torch.save({"weight": {}, "config": _Runs()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match=r"evil\.pth asks for more than tensors"):
        read_weights(tmp_path / "evil.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(_Runs()))
    with pytest.raises(ValueError, match=r"plain\.pth"):
        read_weights(tmp_path / "plain.pth")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [{"weight": [1, 2]}, {"weight": {"a": 3}}, [1, 2]])
def test_a_file_without_a_table_of_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth holds no table of tensors"):
        read_weights(tmp_path / "other.pth")


def test_a_broken_archive_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "empty.pth", "w") as archive:
        archive.writestr("nothing", "")
    for name in ("empty.pth", "absent.pth"):
        with pytest.raises(ValueError, match=name):
            read_weights(tmp_path / name)


def test_loading_is_strict_but_for_what_may_be_absent(tmp_path):
    network = torch.nn.ModuleDict({"enc_q": torch.nn.Linear(2, 2), "dec": torch.nn.Linear(2, 3)})
    weights = {"dec.weight": torch.ones(3, 2), "dec.bias": torch.ones(3)}
    path = tmp_path / "a.pth"
    with pytest.raises(
        ValueError, match=r"a\.pth does not hold this network: 2 missing \(enc_q\.bias, enc_q\.weight\)"
    ):
        load_strictly(network, weights, path)
    kept = network["enc_q"].weight.clone()
    load_strictly(network, weights, path, may_lack=("enc_q.",))
    assert torch.equal(network["dec"].weight, torch.ones(3, 2))
    assert torch.equal(network["enc_q"].weight, kept)
    with pytest.raises(ValueError, match=r"1 missing \(dec\.bias\); 1 not expected \(more\)"):
        load_strictly(network, {"dec.weight": weights["dec.weight"], "more": kept}, path, may_lack=("enc_q.",))
    with pytest.raises(ValueError, match=r"dec\.bias: \(4,\), \(3,\) expected"):
        load_strictly(network, weights | {"dec.bias": torch.ones(4)}, path, may_lack=("enc_q.",))
