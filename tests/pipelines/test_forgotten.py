import json
from pathlib import Path

from pipelines.forgotten import Forgotten, read_forgotten
from pipelines.storage import LocalStorage

ANNA = Forgotten(
    voice="anna", when="2026-01-02T03:04:05+00:00", reason="asked on the phone – am Telefon", consent_id="c-1",
    counts={"files": 3},
)  # fmt: skip


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    corpus = LocalStorage(tmp_path)
    assert read_forgotten(corpus) == []
    ben = Forgotten(voice="ben", when="2026-02-02T00:00:00+00:00", reason="", consent_id=None, counts={})
    for record in (ben, ANNA):
        corpus.write(record.path, record.to_json())
    corpus.write("forgotten/notes.txt", b"not one of ours")
    assert read_forgotten(corpus) == [ANNA, ben]


def test_a_record_says_its_version_and_can_be_read_by_people() -> None:
    text = ANNA.to_json().decode()
    assert json.loads(text)["schema_version"] == 1
    assert "am Telefon" in text
    assert Forgotten.from_json(text.encode()) == ANNA
