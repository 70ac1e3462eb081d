"""To open a model folder runs no Python code but ours, unless the user says so."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from kexue_train.cli import app as cli
from kexue_train.cli.errors import run_command
from kexue_train.downstream.folder_code import may_run_code, trusting_code
from kexue_train.downstream.load_model import load_encoder, load_masked_lm, load_model_tokenizer, save_encoder
from kexue_train.foundation.errors import EvaluationError
from kexue_train.model.released_code import is_our_code
from tests.downstream.evaluate.zero_shot.tiny_models import export_roformer, make_bert

REPOSITORY = Path(__file__).parents[2]
MODELLING, CONFIGURATION = "modeling_roformer_v2.py", "configuration_roformer_v2.py"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_roformer(tmp_path_factory.mktemp("exported") / "hf")


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """An exported folder, to be changed."""
    return shutil.copytree(exported, tmp_path / "hf")


def _plant(file: Path) -> Path:
    """Add code to ``file`` that makes another file when it runs; return that file."""
    made = file.with_suffix(".ran")
    file.parent.mkdir(exist_ok=True)
    code = file.read_text() if file.exists() else ""
    file.write_text(f"{code}\nimport pathlib\npathlib.Path({str(made)!r}).touch()\n")
    return made


def _set(file: Path, **values: object) -> None:
    found = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(found | values))


def test_every_file_of_an_export_may_run(exported: Path) -> None:
    assert {path.name for path in exported.rglob("*.py")} == {MODELLING, CONFIGURATION}
    assert may_run_code(exported)


def test_every_version_in_the_history_is_of_a_release() -> None:
    def git(*arguments: str) -> bytes:
        done = subprocess.run(["git", "-C", str(REPOSITORY), *arguments], capture_output=True, check=False)
        return done.stdout

    paths = [f"kexue_train/model/{name}" for name in (MODELLING, CONFIGURATION)]
    versions = {
        (commit, path) for path in paths for commit in git("log", "--format=%H", "--", path).decode().split()
    }  # none where the code came without its history
    contents = [git("show", f"{commit}:{path}") for commit, path in sorted(versions)]
    unknown = {hashlib.sha256(code).hexdigest() for code in contents if code and not is_our_code(code)}
    assert not unknown, "earlier modelling code: add its hash to model/released_code.py"


@pytest.mark.parametrize("name", [MODELLING, CONFIGURATION, "helper.py", "deeper/helper.py"])
def test_other_code_is_refused_by_name_and_does_not_run(name: str, folder: Path) -> None:
    made = _plant(folder / name)
    with pytest.raises(EvaluationError, match=rf"{folder / name}: is Python code .* --trust-code"):
        load_encoder(folder)
    with pytest.raises(EvaluationError, match=str(folder / name)):
        load_model_tokenizer(folder)
    assert not made.exists()


@pytest.mark.parametrize(
    "words",
    [
        "evaluate sts HF DATA --set S -o OUT",
        "evaluate explain HF 好[MASK]",
        "finetune whitening HF SENTENCES -o OUT",
        "finetune sentence-vectors HF DATA --set S -o OUT",
    ],
)
def test_commands_that_open_a_folder_refuse_other_code(
    words: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = _plant(folder / MODELLING)
    monkeypatch.chdir(tmp_path)
    _write_data(tmp_path)
    names = {"HF": "hf", "DATA": "data", "OUT": "out", "SENTENCES": "sentences.txt", "S": "set"}
    code = run_command(cli.app, [names.get(word, word) for word in words.split()], "kexue")
    said = capsys.readouterr().err
    assert (code, "--trust-code" in said, f"hf/{MODELLING}" in said) == (2, True, True), said
    assert not made.exists()


def _write_data(folder: Path) -> None:
    (folder / "sentences.txt").write_text("好的\n不好\n" * 20)
    pairs = [{"sentence1": "好", "sentence2": "不", "score": 1.0}, {"sentence1": "好", "sentence2": "好", "score": 2.0}]
    (folder / "data" / "set").mkdir(parents=True)
    for name in ("train", "dev", "test"):
        (folder / "data" / "set" / f"{name}.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))


def test_nothing_else_opens_folders_with_their_code() -> None:
    package = REPOSITORY / "kexue_train"
    found = [
        (path.relative_to(package).as_posix(), line)
        for path in sorted(package.rglob("*.py"))
        for line in re.findall(
            r"trust_remote_code=(?!True[)`\"])\w+|torch\.load\(.*|pickle\.load\(.*", path.read_text()
        )
    ]
    assert {file for file, _ in found} == {"downstream/load_model.py", "export/import_weights.py"}
    assert all("runs_code" in line or "weights_only=True" in line for _, line in found), found


def test_trusted_code_runs(folder: Path) -> None:
    made = _plant(folder / MODELLING)
    with trusting_code(True):
        load_masked_lm(folder)
    assert made.exists()
    with pytest.raises(EvaluationError):
        load_masked_lm(folder)


def test_code_of_another_kind_of_model_is_refused_and_a_model_of_transformers_needs_none(tmp_path: Path) -> None:
    folder = make_bert(tmp_path / "bert")
    (folder / "notes.py").write_text("raise SystemExit")
    assert not may_run_code(folder)
    load_masked_lm(folder)
    _set(folder / "config.json", auto_map={"AutoModelForMaskedLM": "notes.Model"})
    with pytest.raises(EvaluationError, match=r"notes\.py: is Python code"):
        load_masked_lm(folder)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda f: _set(f / "config.json", auto_map={"AutoModel": "other/place--modeling.X"}), "config.json"),
        (lambda f: _set(f / "config.json", auto_map={"AutoModel": "../other/modeling.X"}), "config.json"),
        (
            lambda f: _set(f / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "/x/y.Z"]}),
            "tokenizer_config.json",
        ),
        (lambda f: _set(f / "config.4.0.0.json", auto_map={"AutoModel": "/x--y.Z"}), "config.4.0.0.json"),
        (lambda f: _set(f / "config.json", attn_implementation="someone/kernel"), "config.json"),
        (lambda f: _set(f / "config.json", text_config={"_attn_implementation": {"": "a/b"}}), "config.json"),
        (lambda f: _set(f / "adapter_config.json", base_model_name_or_path="/other"), "adapter_config.json"),
    ],
)
def test_code_from_elsewhere_is_refused(change: Callable[[Path], None], named: str, folder: Path) -> None:
    change(folder)
    with pytest.raises(EvaluationError, match=rf"{folder / named}: .*--trust-code"):
        load_encoder(folder)


def test_pickled_weights_run_nothing(folder: Path) -> None:
    made = folder / "ran"

    class Payload:
        def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
            return Path.touch, (made,)

    (folder / "model.safetensors").unlink()
    torch.save({"weights": Payload()}, folder / "pytorch_model.bin")
    with pytest.raises(EvaluationError, match="cannot be loaded"):
        load_encoder(folder)
    assert not made.exists()


def test_a_saved_fine_tuned_model_opens_without_trust(exported: Path, tmp_path: Path) -> None:
    loaded = load_encoder(exported)
    save_encoder(loaded.model, loaded.tokenizer, tmp_path / "saved", ["a", "b"])
    assert may_run_code(tmp_path / "saved")
    load_encoder(tmp_path / "saved")
    assert AutoConfig.from_pretrained(tmp_path / "saved", trust_remote_code=True).model_type == "roformer_v2"
