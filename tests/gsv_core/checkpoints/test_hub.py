import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote

import pytest

from gsv_core.checkpoints.hub import LOCK_NAME, pull, verify
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
