"""The runner on recorded cases beside the checkout and on our own, and what it must not let pass."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from gsv_core.synthesis.sampling import Sampling
from tests.parity import own_cases
from tests.parity.__main__ import main
from tests.parity.inventory import inventory
from tests.parity.models import Report, cases_of, evaluate, reports
from tests.parity.own_cases import OWN
from tests.parity.recorded import RecordedCase, Tolerance, difference
from tests.parity.semantic import DecodingRun
from tests.shared import SHARED, shared_path

GOLDEN = SHARED / "golden" / "models"
NAMES = [case.name for case in cases_of(GOLDEN)] if GOLDEN.is_dir() else []
LISTS = [path.stem for path in sorted((GOLDEN / "inventory").glob("*.json"))]


@pytest.mark.parametrize("name", NAMES or ["golden"])
def test_networks_agree_with_numbers_recorded_from_gpt_sovits(name):
    comparisons = evaluate(RecordedCase(shared_path("golden/models") / name))
    assert comparisons
    assert [comparison for comparison in comparisons if not comparison.agrees] == []


@pytest.mark.parametrize("name", [case.name for case in cases_of(OWN)])
def test_networks_give_what_they_gave_when_they_agreed(name):
    comparisons = evaluate(RecordedCase(OWN / name))
    assert comparisons
    assert [comparison for comparison in comparisons if not comparison.agrees] == []


@pytest.mark.parametrize("name", LISTS or ["golden"])
def test_full_size_networks_have_the_names_and_shapes_of_the_files(name):
    comparisons = list(inventory(shared_path("golden/models/inventory") / f"{name}.json"))
    assert [comparison for comparison in comparisons if not comparison.agrees] == []


FILES = [path.name for path in sorted((GOLDEN / "ckpt").glob("*")) if path.suffix != ".json"]


@pytest.mark.parametrize("name", FILES or ["golden"])
def test_checkpoint_files_are_read_and_written_as_gpt_sovits_does(name):
    (report,) = reports(shared_path("golden/models"), [f"ckpt/{name}"])
    assert report.comparisons
    assert report.wrong == []


def test_our_own_cases_are_those_that_the_command_makes(tmp_path):
    for draft in own_cases.drafts():
        own_cases.write(draft, tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == sorted(path.name for path in OWN.iterdir())
    for name in names:
        if name.endswith(".safetensors"):
            now, kept = load_file(tmp_path / name), load_file(OWN / name)
            assert {key: value.shape for key, value in now.items()} == {key: value.shape for key, value in kept.items()}


def copied(name, folder):
    """A case of our own in `folder`, to be spoilt."""
    for suffix in (".json", ".safetensors"):
        (folder / name).with_suffix(suffix).write_bytes((OWN / name).with_suffix(suffix).read_bytes())
    return RecordedCase(folder / name)


def wrong(case):
    return {comparison.name: comparison.note for comparison in evaluate(case) if not comparison.agrees}


def with_meta(recorded, **values):
    path = recorded.path.with_suffix(".json")
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values), "utf-8")
    return RecordedCase(recorded.path)


def with_tensors(case, change):
    path = case.path.with_suffix(".safetensors")
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    return RecordedCase(case.path)


def test_a_changed_weight_is_noticed(monkeypatch):
    case = RecordedCase(OWN / "sv_eres2netv2_own")
    weights = case.weights()
    weights["layer1.0.conv1.weight"] = weights["layer1.0.conv1.weight"] * 1.01
    monkeypatch.setattr(RecordedCase, "weights", lambda self: weights)
    assert wrong(case).keys() == {"forward", "forward3"}


def test_a_result_nobody_compares_counts_as_wrong(tmp_path):
    case = copied("vocoder_own", tmp_path)
    case = with_tensors(case, lambda tensors: tensors.update({"out/another": torch.zeros(1)}))
    assert wrong(case) == {"another": "recorded, and nothing here compares it"}


def test_gradients_nobody_compares_count_as_wrong(tmp_path):
    case = copied("vocoder_own", tmp_path)
    assert list(wrong(with_meta(case, grad_norms={"wav": {"conv_pre.bias": 1.0}}))) == ["gradients of wav"]


def test_an_unknown_kind_of_case_fails_with_its_name(tmp_path):
    case = with_meta(copied("vocoder_own", tmp_path), upstream="Diffuser (new.py)")
    assert "Diffuser (new.py)" in wrong(case)["vocoder_own"]


def test_the_name_tells_the_kind_where_the_file_does_not(tmp_path):
    case = with_meta(copied("vocoder_own", tmp_path), upstream="", case="vocoder_v4_c")
    assert wrong(case) == {}


def test_a_case_that_does_not_fit_is_reported_and_ends_nothing(tmp_path):
    case = copied("vocoder_own", tmp_path)
    constructor = json.loads(case.path.with_suffix(".json").read_text("utf-8"))["constructor"]
    case = with_meta(case, constructor=constructor | {"upsample_initial_channel": 16})
    assert "RuntimeError" in wrong(case)["evaluation ended early"]


def test_half_a_case_and_stray_files_fail(tmp_path):
    copied("vocoder_own", tmp_path).path.with_suffix(".json").unlink()
    (tmp_path / "more").mkdir()
    for stray in ("more/extra.json", "voice.pth"):
        (tmp_path / stray).write_text("{}", "utf-8")
    found = {report.name: [comparison.note for comparison in report.wrong] for report in reports(tmp_path)}
    assert found == {
        "vocoder_own": ["vocoder_own.json is missing"],
        "more/extra.json": ["nothing here reads files of this folder"],
        "voice.pth": ["checkpoint files are read from the folder ckpt"],
    }


def test_an_inventory_that_differs_or_is_of_an_unknown_class_fails(tmp_path):
    (tmp_path / "new.json").write_text(json.dumps({"class_name": "Diffuser", "keys": {}}), "utf-8")
    assert "Diffuser" in next(iter(inventory(tmp_path / "new.json"))).note
    keys = {f"{layer}.weight": {"shape": [2, 2, 3], "kind": "param"} for layer in ("conv_pre", "conv_post")}
    keys |= {"resblocks.0.convs1.0.weight": {"shape": [1, 1, 3], "kind": "param"}}
    keys |= {"ups.0.weight": {"shape": [2, 1, 4], "kind": "param"}}
    counts = {"n_keys": 4, "n_parameters": 0, "n_trainable": 0, "n_buffer_elements": 0}
    path = tmp_path / "few.json"
    path.write_text(json.dumps({"class_name": "Generator", "keys": keys} | counts), "utf-8")
    assert "conv_pre.bias" in [comparison.name for comparison in inventory(path) if not comparison.agrees]


def test_a_wrong_middle_fails_and_one_without_a_module_does_not(tmp_path):
    case = copied("vocoder_own", tmp_path)
    middles = {"conv_pre": torch.zeros(2, 8, 5), "run.conv_post": torch.zeros(9), "elsewhere": torch.ones(1)}
    added = {f"mid/{name}": value for name, value in middles.items()}
    comparisons = evaluate(with_tensors(case, lambda tensors: tensors.update(added)))
    assert [comparison.name for comparison in comparisons if not comparison.agrees] == ["mid/conv_pre"]
    assert {comparison.name for comparison in comparisons if comparison.left_out} == {
        "mid/run.conv_post",
        "mid/elsewhere",
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("exact", Tolerance()),
        ("relative 1e-6", Tolerance(relative=1e-6)),
        ("rtol 1e-5, atol 1e-8", Tolerance(absolute=1e-8, relative=1e-5)),
        ("atol 2e-3 (log of small energies)", Tolerance(absolute=2e-3)),
        ("atol 1e-5 + 2e-5 x max|reference|", Tolerance(absolute=1e-5, of_largest=2e-5)),
        ("close enough", None),
    ],
)
def test_tolerances_are_read_from_their_sentence(text, expected):
    assert Tolerance.written(text) == expected


def test_a_relative_tolerance_holds_for_every_element():
    recorded = torch.tensor([100.0, 0.1])
    assert difference("x", torch.tensor([100.0009, 0.1]), recorded, Tolerance(relative=1e-5)).agrees
    assert not difference("x", torch.tensor([100.0, 0.1009]), recorded, Tolerance(relative=1e-5)).agrees
    assert not difference("x", torch.tensor([float("nan"), 0.1]), recorded, Tolerance(absolute=1e9)).agrees
    assert not difference("x", torch.zeros(1, 2), recorded, Tolerance(absolute=1e9)).agrees


def test_decoding_runs_are_read_from_their_description(tmp_path):
    outputs = {
        "greedy": "top_k=1, repetition_penalty 1.35 (the default), early_stop_num=30",
        "free": "same with repetition_penalty=1; prompts=None",
        "sampled": "top_k=8 top_p=0.95 temperature=0.8 repetition_penalty=1.2",
        "batch": "eos_row installed, early_stop_num=40; each result drops its last token",
        "open": "top_k=-100 top_p=100",
    }
    case = with_meta(copied("s1_own_infer", tmp_path), outputs=outputs, early_stop_num=9)
    assert DecodingRun.of(case, "free") == DecodingRun(
        sampling=Sampling(top_k=1, repetition_penalty=1.0), early_stop=30, prompted=False
    )
    assert DecodingRun.of(case, "sampled").sampling == Sampling(
        top_k=8, top_p=0.95, temperature=0.8, repetition_penalty=1.2
    )
    assert DecodingRun.of(case, "batch") == DecodingRun(sampling=Sampling(top_k=1), early_stop=40, own_end_row=True)
    assert DecodingRun.of(case, "open").sampling.top_p == 1.0
    assert DecodingRun.of(case, "open").drawn


def test_the_command_says_a_line_per_tensor_and_returns_zero(capsys):
    assert main(["models", str(OWN), "--case", "vocoder_own"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "vocoder_own wav: absolute" in lines[0]
    assert lines[0].endswith("pass")
    assert lines[-1] == "1 cases and files, 1 comparisons: 1 pass, 0 fail"


def test_the_command_returns_one_and_names_what_failed(tmp_path, capsys):
    case = copied("vocoder_own", tmp_path)
    with_tensors(case, lambda tensors: tensors["out/wav"].mul_(1.1))
    assert main(["models", str(tmp_path), "--quiet"]) == 1
    out = capsys.readouterr().out
    assert "FAIL" in out
    assert out.splitlines()[-1] == "failed: vocoder_own"


def test_quiet_says_nothing_of_what_passes(capsys):
    assert main(["models", str(OWN), "--case", "vocoder_own", "--quiet"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize("arguments", [[], ["--case", "nothing"]])
def test_the_command_refuses_a_folder_without_cases(tmp_path, arguments):
    with pytest.raises(SystemExit) as ended:
        main(["models", str(tmp_path), *arguments])
    assert ended.value.code == 2


def test_nothing_compared_is_no_success():
    assert Report("empty").wrong
