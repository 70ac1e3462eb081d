"""Secrets planted wherever users give them: no byte that is written or printed has one, and no result needs one."""

from __future__ import annotations

import functools
import http.server
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import yaml

from kexue_train.cli import app as cli
from kexue_train.corpus.patterns import was_named_by
from kexue_train.foundation.artifacts import Recipe
from kexue_train.foundation.errors import ConfigError, CorpusError
from kexue_train.foundation.run_dir import RunDir
from kexue_train.pipeline.refresh import find_arrivals
from kexue_train.pipeline.run_config import RunConfig
from kexue_train.train.checkpoint.storage import Storage
from tests.pipeline.test_pipeline import CONFIG, IN_ONE_PROCESS, write_inputs

SECRETS = {
    name: f"pLaNtEd{name}9x" for name in ("password", "signature", "mirror", "token", "index", "tracking", "renewed")
}
ENVIRONMENT = {
    "HF_TOKEN": SECRETS["token"],
    "HF_ENDPOINT": f"https://user:{SECRETS['token']}@hub.example",
    "PIP_INDEX_URL": f"https://user:{SECRETS['index']}@index.example/simple",
    "MLFLOW_TRACKING_URI": f"https://user:{SECRETS['tracking']}@tracking.example",
    "WANDB_API_KEY": SECRETS["tracking"],
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """HOST:PORT of a web server that has documents, one of them broken."""
    folder = tmp_path_factory.mktemp("server")
    write_inputs(folder)
    with (folder / "documents.jsonl").open("a") as file:
        file.write('{"text": broken\n')

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    handler = functools.partial(Quiet, directory=folder)

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:
            """Say nothing about a reader that has seen enough."""

    with Server(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{running.server_port}"
        running.shutdown()


def _address(server: str, password: str, signature: str, file: str = "documents.jsonl") -> str:
    return f"http://user:{password}@{server}/{file}?X-Amz-Date=1&X-Amz-Signature={signature}"


class Kexue:
    """The command, in this process, and all that it printed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self.printed = ""
        self._monkeypatch, self._capfd = monkeypatch, capfd

    def __call__(self, *words: str) -> int:
        self._monkeypatch.setattr(sys, "argv", ["kexue", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        self.printed += "".join([*self._capfd.readouterr(), *sys.argv])
        return int(end.value.code or 0)


@pytest.fixture
def kexue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Kexue:
    monkeypatch.chdir(tmp_path)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MIMALLOC_PURGE_DELAY", "10000")  # which the command sets for its process
    monkeypatch.setenv("PYDANTIC_DISABLE_PLUGINS", "1")  # the same
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    return Kexue(monkeypatch, capfd)


def _found(folder: Path, printed: str) -> list[tuple[str, str]]:
    """Where which secret is."""
    contents = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    contents |= {"names": "\n".join(contents).encode(), "printed": printed.encode()}
    return [
        (name, kind) for name, data in contents.items() for kind, value in SECRETS.items() if value.encode() in data
    ]


def _pipeline(address: str) -> list[str]:
    return [
        "pipeline", "-c", "tiny.yaml", "--run-dir", "run", IN_ONE_PROCESS, "train.compute.engine=torch",
        f"corpus.inputs=[{json.dumps(address)}]", "shuffle.format=jsonl", "shuffle.on_bad_record=skip",
        f"shuffle.weights={json.dumps({address: 2})}",
        f"train.checkpoints.mirror=memory://user:{SECRETS['mirror']}@mirror/run",
    ]  # fmt: skip


def test_no_byte_that_a_run_writes_or_prints_has_a_secret(server: str, kexue: Kexue, tmp_path: Path) -> None:
    assert kexue(*_pipeline(_address(server, SECRETS["password"], SECRETS["signature"]))) == 0, kexue.printed
    run = RunDir(tmp_path / "run")
    named = f"http://{server}/documents.jsonl"
    [entry] = json.loads((run.shards / "manifest.json").read_text())["inputs"]
    assert (entry["uri"], sum(entry["rejected"].values())) == (named, 1)
    assert json.loads((run.shards / "rejected" / "records.jsonl").read_text())["file"] == named
    assert yaml.safe_load(run.config.read_text())["corpus"]["inputs"] == [
        f"http://***@{server}/documents.jsonl?X-Amz-Date=***&X-Amz-Signature=***"
    ]
    assert named in (run.report / "index.html").read_text()
    assert not _found(tmp_path, kexue.printed)
    assert fsspec.filesystem("memory").glob("/**/step-*"), "the mirror was reached with its password"

    # A renewed signature and password are not another input; the configuration that was written is enough, too.
    before = (run.shards / "manifest.json").stat().st_mtime_ns
    kexue.printed = ""
    assert kexue(*_pipeline(_address(server, SECRETS["renewed"], SECRETS["renewed"]))) == 0, kexue.printed
    assert kexue.printed.count("(complete before)") == 7, kexue.printed
    assert kexue("pipeline", "-c", "run/config.yaml", "--run-dir", "run", "train.checkpoints.mirror=null") == 0
    assert (run.shards / "manifest.json").stat().st_mtime_ns == before
    assert not _found(tmp_path, kexue.printed)

    # Folders of earlier releases have the addresses as they were given.
    manifest = json.loads((run.shards / "manifest.json").read_text())
    manifest["inputs"][0]["uri"] = _address(server, "before", "before")
    (run.shards / "manifest.json").write_text(json.dumps(manifest))
    kexue.printed = ""
    assert kexue(*_pipeline(_address(server, SECRETS["renewed"], SECRETS["renewed"]))) == 0
    assert kexue.printed.count("(complete before)") == 7, kexue.printed
    assert "before@" not in (run.report / "index.html").read_text()


@pytest.mark.parametrize(
    "words",
    [
        "shuffle ADDRESS -o out --format jsonl --workers 1",
        "shuffle ADDRESS -o out --format jsonl --workers 1 --debug",
        "shuffle MISSING -o out --format jsonl",
        "shuffle MISSING -o out --format jsonl --debug",
        "shuffle ADDRESS -o out --weight OTHER=2",
        "pipeline -c tiny.yaml --run-dir run corpus.inputs=[ADDRESS] train.stpes=2",
        "pipeline -c tiny.yaml --run-dir run corpus.inputs=ADDRESS",
        "plan -c tiny.yaml corpus.inputs=[MISSING]",
        "shuffle ADDRESS --nonsense=ADDRESS -o out",
    ],
)
def test_no_refusal_tells_a_secret(words: str, server: str, kexue: Kexue, tmp_path: Path) -> None:
    names = {
        "ADDRESS": _address(server, SECRETS["password"], SECRETS["signature"]),
        "MISSING": _address(server, SECRETS["password"], SECRETS["signature"], "missing.jsonl"),
        "OTHER": _address("other.example", SECRETS["password"], SECRETS["signature"]),
    }
    for name, value in names.items():
        words = words.replace(name, value)
    assert kexue(*words.split()) == 2
    assert "error" in kexue.printed.lower()
    assert not _found(tmp_path, kexue.printed)


def test_old_recipes_differ_in_no_credential() -> None:
    old = Recipe(
        kind="text_shards",
        settings={"weights": {"https://u:old@h/a?v=1&sig=old": 2}},
        inputs=[("https://u:old@h/a?v=1&sig=old", 9, 1)],
    )
    new = Recipe(kind="text_shards", settings={"weights": {"https://h/a?v=1": 2}}, inputs=[("https://h/a?v=1", 9, 1)])
    other = Recipe(kind="text_shards", settings={"weights": {"https://h/a?v=1": 2}}, inputs=[("https://h/a?v=2", 9, 1)])
    assert new.difference(old) is None
    assert other.difference(old) == "input file https://h/a?v=1 was added, removed or changed (and 1 more)"
    assert was_named_by("https://h/a?v=1", "https://u:new@h/a?v=1&sig=new")
    assert was_named_by("https://u:old@h/a?v=1&sig=old", "https://***@h/a?v=1&sig=***")


def test_a_masked_address_is_refused_before_it_is_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"memory://user:\*\*\*@mirror/run: credentials were here"):
        Storage("memory://user:***@mirror/run")


def test_a_masked_input_says_that_its_credentials_are_not_kept(kexue: Kexue) -> None:
    assert kexue("shuffle", "https://***@host/a.jsonl?sig=***", "-o", "out") == 2
    assert "credentials were here, and are not kept (***)" in kexue.printed


def test_new_files_are_recognised_by_what_they_are(server: str, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    config = RunConfig.load(tmp_path / "tiny.yaml", ["shuffle.format=jsonl"])
    run = RunDir(tmp_path / "run")
    run.shards.mkdir(parents=True)
    address = _address(server, "a", "b")
    state = find_arrivals(config, [address], []).new[0]
    manifest = {
        "kind": "text_shards", "settings": {}, "settings_digest": "", "files": {},
        "inputs": [{"uri": _address(server, "old", "old"), "bytes": state.bytes, "modified_ns": state.modified_ns}],
    }  # fmt: skip
    (run.shards / "manifest.json").write_text(json.dumps(manifest | {"schema_version": 1}))
    arrivals = find_arrivals(config, [address], [run])
    assert (arrivals.new, arrivals.changed) == ([], [])
    with pytest.raises(CorpusError, match="missing"):
        find_arrivals(config, [_address(server, "a", "b", "missing.jsonl")], [run])
