import hashlib
import io
import json
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote

import pytest

from gsv_core.checkpoints.hub import LOCK_NAME, TEXT_FILES, pull, pull_text, verify
from gsv_core.checkpoints.releases import RELEASES, REPOSITORY, Release

FILES = RELEASES[Release.V1].files


def content_of(name):
    return f"content of {name}".encode()


class _Hub(BaseHTTPRequestHandler):
    """The part of the hub's protocol that a download uses: the headers of a file, then its bytes."""

    def _answer(self, *, body):
        prefix = f"/{REPOSITORY}/resolve/main/"
        name = unquote(self.path).removeprefix(prefix)
        self.server.asked.append(name)  # type: ignore[attr-defined]
        if not unquote(self.path).startswith(prefix) or name in self.server.absent:  # type: ignore[attr-defined]
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = content_of(name)
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    server.asked, server.absent = [], set()  # type: ignore[attr-defined]
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def address(server):
    return f"http://127.0.0.1:{server.server_port}"


def test_pulling_brings_every_file_locks_it_and_asks_no_second_time(hub, tmp_path):
    fetched = []
    paths = pull(Release.V1, tmp_path, endpoint=address(hub), on_file=fetched.append)
    assert fetched == list(FILES)
    assert [path.read_bytes() for path in paths] == [content_of(name) for name in FILES]
    lock = json.loads((tmp_path / LOCK_NAME).read_text())
    assert lock["files"][FILES[0]]["sha256"] == hashlib.sha256(content_of(FILES[0])).hexdigest()
    assert verify(tmp_path).keys() == set(FILES)
    hub.asked.clear()
    pull(Release.V1, tmp_path, endpoint=address(hub), on_file=fetched.append)
    assert hub.asked == []
    assert len(fetched) == len(FILES)


def test_a_file_the_hub_lacks_is_named_with_what_to_do(hub, tmp_path):
    hub.absent.add(FILES[1])
    with pytest.raises(ValueError, match=rf"{FILES[1]} could not be fetched from {REPOSITORY}: .*--from DIR"):
        pull(Release.V1, tmp_path, endpoint=address(hub))
    assert verify(tmp_path).keys() == {FILES[0]}
    hub.absent.clear()
    pull(Release.V1, tmp_path, endpoint=address(hub))
    assert verify(tmp_path).keys() == set(FILES)


def carried(folder, *, flat):
    for name in FILES:
        path = folder / (Path(name).name if flat and "/" not in name else name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content_of(name))
    return folder


def test_a_folder_carried_in_by_hand_is_copied(tmp_path):
    source, models = carried(tmp_path / "usb", flat=True), tmp_path / "models"
    pull(Release.V1, models, source=source)
    assert (models / FILES[0]).read_bytes() == content_of(FILES[0])
    (source / FILES[0]).unlink()
    (models / FILES[0]).unlink()
    with pytest.raises(ValueError, match=f"usb holds no {FILES[0]}"):
        pull(Release.V1, models, source=source)


def test_files_of_a_release_are_found_by_name_alone_too(tmp_path):
    source = tmp_path / "usb"
    source.mkdir()
    for name in RELEASES[Release.V2].files:
        if not name.startswith("chinese-"):
            (source / Path(name).name).write_bytes(b"x")
        else:
            (source / name).parent.mkdir(exist_ok=True)
            (source / name).write_bytes(b"y")
    pull(Release.V2, tmp_path / "models", source=source)
    assert verify(tmp_path / "models").keys() == set(RELEASES[Release.V2].files)


def test_a_file_that_changed_is_refused_until_it_is_fetched_again(tmp_path):
    source, models = carried(tmp_path / "usb", flat=False), tmp_path / "models"
    pull(Release.V1, models, source=source)
    (models / FILES[2]).write_bytes(b"tampered")
    with pytest.raises(ValueError, match=f"{FILES[2]} changed since it was locked"):
        verify(models)
    verify(models, FILES[:2])
    pull(Release.V1, models, source=source)
    verify(models)


def test_what_was_locked_does_not_change_silently(tmp_path):
    source, models = carried(tmp_path / "usb", flat=False), tmp_path / "models"
    pull(Release.V1, models, source=source)
    (models / FILES[0]).unlink()
    (source / FILES[0]).write_bytes(b"another file of that name")
    with pytest.raises(ValueError, match="remove its entry there and pull again"):
        pull(Release.V1, models, source=source)


def test_files_missing_or_never_locked_are_named(tmp_path):
    source, models = carried(tmp_path / "usb", flat=False), tmp_path / "models"
    pull(Release.V1, models, source=source)
    (models / FILES[0]).unlink()
    with pytest.raises(ValueError, match="locked but missing"):
        verify(models)
    with pytest.raises(ValueError, match="is not in"):
        verify(models, ["other.pth"])
    (models / LOCK_NAME).write_text("[]")
    with pytest.raises(ValueError, match="no lock of model files"):
        verify(models)


TEXT_NAMES = [Path(name).name for name in TEXT_FILES[:-1]]


def zipped(names):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, f"unpacked {Path(name).name}")
    return packed.getvalue()


def carried_text(folder, names):
    (folder / "chinese-roberta-wwm-ext-large").mkdir(parents=True)
    (folder / "chinese-roberta-wwm-ext-large/tokenizer.json").write_text("{}")
    (folder / "G2PWModel.zip").write_bytes(zipped(names))
    return folder


def test_the_text_model_is_unpacked_and_locked_and_nothing_else_in_the_zip_is(tmp_path):
    names = [f"G2PWModel_1.1/{name}" for name in TEXT_NAMES] + ["G2PWModel_1.1/config.py", "../../outside.txt"]
    source, models = carried_text(tmp_path / "usb", names), tmp_path / "deep" / "models"
    pull_text(models, source=source)
    assert verify(models).keys() == set(TEXT_FILES)
    assert (models / TEXT_FILES[0]).read_text() == "unpacked g2pW.onnx"
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert not {path for path in files if "config.py" in path or "outside" in path}
    (source / "G2PWModel.zip").unlink()
    pull_text(models, source=source)  # all there and unchanged: nothing is needed


def test_the_text_model_comes_as_plain_files_too(tmp_path):
    source = tmp_path / "usb"
    (source / "G2PWModel").mkdir(parents=True)
    for name in TEXT_FILES:
        (source / name).write_text(name)
    (source / "tokenizer.json").write_text("{}")
    pull_text(tmp_path / "models", source=source)
    assert verify(tmp_path / "models").keys() == set(TEXT_FILES)


@pytest.mark.parametrize(("names", "said"), [(TEXT_NAMES[1:], "holds 0 files g2pW.onnx"), ([], "holds 0 files")])
def test_a_zip_that_lacks_a_file_is_refused(tmp_path, names, said):
    with pytest.raises(ValueError, match=said):
        pull_text(tmp_path / "models", source=carried_text(tmp_path / "usb", names))


def test_a_text_model_that_is_another_than_the_locked_one_is_refused(tmp_path):
    source, models = carried_text(tmp_path / "usb", TEXT_NAMES), tmp_path / "models"
    pull_text(models, source=source)
    (models / TEXT_FILES[0]).unlink()
    lock = json.loads((models / LOCK_NAME).read_text())
    lock["files"][TEXT_FILES[0]]["sha256"] = "0" * 64
    (models / LOCK_NAME).write_text(json.dumps(lock))
    with pytest.raises(ValueError, match="remove its entry there and pull again"):
        pull_text(models, source=source)


def test_no_zip_is_refused(tmp_path):
    source = carried_text(tmp_path / "usb", TEXT_NAMES)
    (source / "G2PWModel.zip").write_bytes(b"an error page")
    with pytest.raises(ValueError, match="no whole zip archive"):
        pull_text(tmp_path / "models", source=source)
