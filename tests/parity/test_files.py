import json

import pytest
import torch

from gsv_core.checkpoints.upstream import UpstreamFile
from gsv_core.checkpoints.upstream_writing import write_upstream
from tests.parity.files import FACTS_NAME, checkpoint_files
from tests.shared import shared_path


def test_every_recorded_file_is_read_described_and_written_back_the_same():
    compared = dict(checkpoint_files(shared_path("golden/models")))
    assert len(compared) == 10
    wrong = [f"{name}: {one.name}: {one.note}" for name, all_ in compared.items() for one in all_ if not one.agrees]
    assert wrong == []
    assert all(len(all_) > 15 for all_ in compared.values())


@pytest.fixture
def folder(tmp_path):
    """One LoRA file of ours and what is true of it."""
    names = ["ref_enc.a", "cfm.base_model.model.x.to_q.lora_A.default.weight"]
    weights = {name: torch.ones(2, 3).half() for name in names}
    config = {"model": {"version": "v3"}}
    (tmp_path / "ckpt").mkdir()
    file = UpstreamFile(weights=weights, config=config, config_is_object=True, info="x", lora_rank=2, header=b"03")
    write_upstream(tmp_path / "ckpt" / "a.pth", file)
    facts = {
        "header_bytes_ascii": "03",
        "top_level_keys": ["weight", "config", "info", "lora_rank"],
        "weight_keys": {name: [2, 3] for name in names},
        "dtypes": ["float16"],
        "pickle_globals": [
            "collections.OrderedDict",
            "torch.HalfStorage",
            "torch._utils._rebuild_tensor_v2",
            "utils.HParams",
        ],
        "config_type": "utils.HParams",
        "config_plain": config,
        "info": "x",
        "other": {"lora_rank": 2},
    }
    return tmp_path, facts


def wrong_in(folder, facts):
    (folder / "ckpt" / FACTS_NAME).write_text(json.dumps(facts))
    return {name: {one.name for one in all_ if not one.agrees} for name, all_ in checkpoint_files(folder)}


def test_what_is_recorded_wrongly_is_found(folder):
    place, facts = folder
    assert wrong_in(place, {"a.pth": facts}) == {"a.pth": {"described"}}  # most names of a LoRA file are missing
    for changed, found in (
        ({"header_bytes_ascii": "PK"}, "header"),
        ({"weight_keys": {"b": [1]}}, "names and shapes"),
        ({"info": "y"}, "information"),
        ({"config_plain": {}}, "settings"),
        ({"config_type": "builtins.dict"}, "kind of settings"),
        ({"pickle_globals": []}, "names the pickle asks for"),
        ({"other": {}}, "LoRA rank"),
        ({"other": {"lora_rank": 2, "optimizer": "dict"}}, "other entries"),
        ({"bytes": 1}, "bytes"),
        ({"header_hex": "504b0304"}, "header_hex"),
        ({"n_weight_keys": 1}, "n_weight_keys"),
        ({"globals_to_allow_for_weights_only": []}, "globals_to_allow_for_weights_only"),
        ({"loads_with_weights_only_true": True}, "loads_with_weights_only_true"),
    ):
        assert found in wrong_in(place, {"a.pth": facts | changed})["a.pth"]


def test_files_without_facts_and_facts_without_files_fail(folder):
    place, facts = folder
    assert wrong_in(place, {"b.pth": facts, "_rules": {}}).keys() == {"a.pth", "b.pth"}
    assert all(wrong_in(place, {"b.pth": facts}).values())
    assert list(checkpoint_files(place / "ckpt")) == []
