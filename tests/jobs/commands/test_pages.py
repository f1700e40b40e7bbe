import json
from pathlib import Path

import pytest

from jobs.cli import main
from jobs.workspace import Workspace
from tests.pipelines.report.made_corpus import make_corpus

SENTENCES = "\ufeffThe quiet river.\n\nA joyful boy saw the thin moon.\nA joyful boy saw the thin moon.\n… !?\n"


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    make_corpus(Workspace.open(tmp_path / "work").corpus)
    (tmp_path / "sentences.txt").write_text(SENTENCES, encoding="utf-8")
    return tmp_path / "work"


def test_coverage_is_a_table_and_the_sentences_to_record(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["report", "--workspace", str(workspace), "--coverage", "ada"]
    assert main(options) == 0
    told = capsys.readouterr().out
    assert "15 of 39" in told
    assert "adds" not in told
    assert not (workspace / "corpus" / "report").exists()
    assert main([*options, "--sentences", str(workspace.parent / "sentences.txt")]) == 0
    told = capsys.readouterr().out
    assert "  1  A joyful boy saw the thin moon." in told
    assert "The quiet river." not in told
    assert "cannot be recorded as one sentence: 1" in told


def test_coverage_for_machines(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["report", "--workspace", str(workspace), "--coverage", "linus", "--json"]
    assert main(options) == 0
    record = json.loads(capsys.readouterr().out)
    (mandarin,) = record["languages"]
    assert (record["voice"], mandarin["language"]) == ("linus", "zh")
    for kind in ("phonemes", "tones", "pairs"):
        found = mandarin[kind]
        assert found["seen"] + len(found["missing"]) == found["known"]
        assert 0 < found["weighted_share"] < 1
    assert "sentences" not in record
    words = workspace.parent / "chinese.txt"
    words.write_text("谢谢你。\n我们今天去公园。\n", encoding="utf-8")
    assert main([*options, "--sentences", str(words), "--most", "1"]) == 0
    record = json.loads(capsys.readouterr().out)
    (proposed,) = record["sentences"]
    assert proposed["text"] == "谢谢你。"
    assert proposed["weight"] > 0
    assert ["zh", "pairs", "x E"] not in proposed["adds"]
    assert ["zh", "pairs", "x ie"] in proposed["adds"]
    assert record["uncovered"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--coverage", "nobody"], "no voice 'nobody'"),
        (["--coverage", "hostile"], "no clip with phonemes"),
        (["--sentences", "x.txt"], "needs --coverage"),
        (["--coverage", "ada", "--sentences", "absent.txt"], "No such file"),
        (["--coverage", "ada", "--sentences", "."], "directory"),
        (["--coverage", "ada", "--most", "0"], "at least 1"),
    ],
)
def test_wrong_use_is_said_in_one_line(
    workspace: Path, capsys: pytest.CaptureFixture[str], options: list[str], complaint: str
) -> None:
    assert main(["report", "--workspace", str(workspace), *options]) == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert len(said.strip().splitlines()) == 1


def test_the_morning_page_from_the_command_line(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--fleet", "--workspace", str(workspace), "--json"]) == 0
    page = Path(json.loads(capsys.readouterr().out)["report"])
    assert page == workspace / "corpus" / "report" / "fleet.html"
    assert "first morning" in page.read_text(encoding="utf-8")
    assert not (workspace / "mlflow.db").exists()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["anna"], "two voices, got 1"),
        (["anna", "bob"], "no MLflow store"),
        (["anna", "bob", "--most", "0"], "at least 1"),
        (["anna", "--read", "votes.json"], "takes files of votes, and no voices"),
        (["--read", "absent.json"], "No such file"),
    ],
)
def test_a_comparison_used_wrongly_is_said_in_one_line(
    workspace: Path, capsys: pytest.CaptureFixture[str], options: list[str], complaint: str
) -> None:
    # Voices come first: `--read` takes all that follows it.
    assert main(["compare", *options, "--workspace", str(workspace)]) == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert len(said.strip().splitlines()) == 1


def test_votes_are_counted_at_the_command_line(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trials = [{"sentence": f"en-{number}", "text": "x", "first": "a"} for number in range(6)]
    (workspace / "comparisons").mkdir()
    key = {"id": "c0ffee", "a": {"label": "anna run 1"}, "b": {"label": "anna run 2"}, "trials": trials}
    (workspace / "comparisons" / "c0ffee.json").write_text(json.dumps(key))
    votes = [{"sentence": trial["sentence"], "choice": "first"} for trial in trials]
    file = tmp_path / "votes.json"
    file.write_text(json.dumps({"comparison": "c0ffee", "listener": "l", "votes": votes}))
    assert main(["compare", "--workspace", str(workspace), "--read", str(file)]) == 0
    told = capsys.readouterr().out
    assert "6 : 0, 0 alike" in told
    assert "100 % (61 to 100)" in told
    assert "0.031" in told
    assert "neither is registered" in told
