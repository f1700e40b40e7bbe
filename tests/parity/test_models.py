import pytest
import torch

from tests.parity import inventory
from tests.parity.__main__ import main
from tests.parity.models import covered_cases, evaluate
from tests.parity.recorded import RecordedCase
from tests.shared import SHARED, shared_path

GOLDEN = SHARED / "golden" / "models"
NAMES = [case.name for case in covered_cases(GOLDEN)[0]]


@pytest.mark.parametrize("name", NAMES or ["golden"])
def test_networks_agree_with_recorded_numbers(name):
    case = RecordedCase(shared_path("golden/models") / name)
    comparisons = evaluate(case)
    assert comparisons
    assert [comparison for comparison in comparisons if not comparison.agrees] == []


@pytest.mark.parametrize("name", list(inventory.NETWORKS))
def test_full_size_networks_have_the_names_and_shapes_of_the_files(name):
    assert inventory.differences(name, shared_path("golden/models/inventory")) == []


def test_a_changed_weight_is_noticed(monkeypatch):
    case = RecordedCase(shared_path("golden/models") / "sv_eres2netv2_tiny")
    weights = case.weights()
    weights["layer1.0.conv1.weight"] = weights["layer1.0.conv1.weight"] * 1.01
    monkeypatch.setattr(RecordedCase, "weights", lambda self: weights)
    assert not all(comparison.agrees for comparison in evaluate(case))


def test_a_result_nobody_compares_counts_as_wrong(monkeypatch):
    case = RecordedCase(shared_path("golden/models") / "sv_fbank")
    case.__dict__["_tensors"] = dict(case._tensors) | {"out/another": torch.zeros(1)}
    assert [comparison.name for comparison in evaluate(case) if not comparison.agrees] == ["another (not compared)"]


def test_the_command_reports_and_returns_zero(capsys):
    assert main(["models", str(shared_path("golden/models")), "--case", "sv_fbank"]) == 0
    assert "all agree" in capsys.readouterr().out


def test_the_command_refuses_a_folder_without_cases(tmp_path):
    with pytest.raises(SystemExit) as ended:
        main(["models", str(tmp_path)])
    assert ended.value.code == 2
