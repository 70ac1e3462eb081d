"""Uploading, against a server on this machine that answers as the hub does."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from kexue_train.foundation.errors import ConfigError, ResourceError
from kexue_train.publication.hub import check_repository, push_folder


class Hub:
    """A hub that keeps what it is sent; ``status`` is how it answers."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.made: list[dict[str, object]] = []
        self.tokens: set[str | None] = set()
        self.status = 200
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                hub.tokens.add(self.headers["authorization"])
                answer = json.dumps(hub.answer(self.path, body) if hub.status == 200 else {"error": "no"}).encode()
                self.send_response(hub.status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def do_GET(self) -> None:
                self.send_error(404)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, path: str, body: bytes) -> object:
        if path == "/api/repos/create":
            self.made.append(json.loads(body))
            return {"url": f"{self.url}/eva/small"}
        if path == "/api/models/eva/small/preupload/main":
            names = [entry["path"] for entry in json.loads(body)["files"]]
            return {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]}
        if path == "/api/models/eva/small/commit/main":
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            return {"commitUrl": f"{self.url}/eva/small/commit/1", "commitOid": "1", "success": True}
        return {}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that huggingface_hub talks to."""
    served = Hub()
    threading.Thread(target=served.server.serve_forever, daemon=True).start()
    use_hub(monkeypatch, served.url)
    monkeypatch.setattr("huggingface_hub.hf_api.get_token", lambda: "hf_token")
    monkeypatch.setattr("huggingface_hub.utils._headers.get_token", lambda: "hf_token")
    yield served
    served.server.shutdown()
    served.server.server_close()


def use_hub(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Take ``url`` for the hub, as ``HF_ENDPOINT`` does before huggingface_hub is imported."""
    for name in ("ENDPOINT", "HF_ENDPOINT"):
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", url, raising=False)
    monkeypatch.setattr("huggingface_hub.hf_api.ENDPOINT", url, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Something to upload."""
    (tmp_path / "provenance").mkdir()
    (tmp_path / "provenance" / "01.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(bytes(range(256)))
    return tmp_path


@pytest.mark.parametrize("private", [False, True])
def test_all_files_arrive_as_they_are(hub: Hub, folder: Path, private: bool) -> None:
    assert push_folder(folder, "eva/small", private=private) == f"{hub.url}/eva/small/commit/1"
    assert hub.files == {"provenance/01.json": b"{}", "model.safetensors": bytes(range(256))}
    assert hub.tokens == {"Bearer hf_token"}
    assert ("private" in json.dumps(hub.made)) == private


@pytest.mark.parametrize(("status", "kind"), [(401, ConfigError), (403, ConfigError), (400, ResourceError)])
def test_a_hub_that_refuses_is_told_with_what_to_do(hub: Hub, folder: Path, status: int, kind: type[Exception]) -> None:
    hub.status = status
    with pytest.raises(kind, match=r"--push eva/small: .*(hf auth login|later)"):
        push_folder(folder, "eva/small", private=False)
    assert not hub.files


def test_a_hub_out_of_reach_is_told_and_the_folder_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_hub(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(ResourceError, match="cannot be reached"):
        push_folder(folder, "eva/small", private=False)
    assert (folder / "model.safetensors").exists()


@pytest.mark.parametrize("name", ["small", "eva/", "/small", "eva/small/encoder"])
def test_a_name_that_no_repository_has_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="expected OWNER/NAME"):
        check_repository(name)


def test_a_name_that_the_hub_never_takes_is_refused(hub: Hub, folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"--push eva/\.\.no:"):
        push_folder(folder, "eva/..no", private=False)
