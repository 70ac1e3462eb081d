"""The ``kexue`` command: quick help, one-paragraph errors with exit codes, and the data stages on a small input."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kexue_train import __version__
from kexue_train.cli import app as cli
from kexue_train.foundation import runtime

COMMANDS = [
    "doctor", "init", "corpus-from-docs", "shuffle", "verify", "tokenizer", "samples", "train", "export",
    "import-weights",
    "ask", "rows", "evaluate", "evaluate mlm", "evaluate nsp-zero-shot", "evaluate sts", "evaluate explain",
    "finetune task", "finetune whitening", "finetune sentence-vectors", "plan", "report", "pipeline",
    "publish", "metrics", "try",
]  # fmt: skip
HEAVY = {"torch", "ray", "pyarrow", "datasets", "transformers", "tokenizers", "numpy", "prefect"}
SENTENCES = ["the cat sat on the mat", "a dog ran over the hill", "who let the dog out", "no cat was seen that day"]
CONFIG = """
name: tiny
corpus: {inputs: [documents.jsonl]}
samples: {seq_len: 32}
model: {num_hidden_layers: 1, hidden_size: 32, num_attention_heads: 2, intermediate_size: 64}
optimizer: {schedule: {2: 1.0}}
train: {steps: 4, global_batch_size: 8, micro_batch_size: 4, workers: {launcher: torchrun}}
"""


def write_documents(folder: Path) -> None:
    """80 documents of four sentences."""
    text = [". ".join(SENTENCES[(i + k) % 4] + f" {i}" for k in range(4)) + "." for i in range(80)]
    lines = [json.dumps({"text": document}) + "\n" for document in text]
    (folder / "documents.jsonl").write_text("".join(lines))


@dataclass
class Ended:
    code: int
    out: str
    err: str


Kexue = Callable[..., Ended]


@pytest.fixture
def kexue(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Kexue:
    """Run the command in this process, as the shell would."""

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["kexue", *map(str, arguments)])
        monkeypatch.setenv("MIMALLOC_PURGE_DELAY", "10000")  # which the command sets for its process
        monkeypatch.setenv("PYDANTIC_DISABLE_PLUGINS", "1")  # the same
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        return Ended(int(end.value.code or 0), *capfd.readouterr())

    return run


@pytest.fixture
def refused(kexue: Kexue) -> Callable[..., str]:
    """Run a command that must end with one paragraph and exit code 2; returns that paragraph."""

    def run(*arguments: object) -> str:
        ended = kexue(*arguments)
        lines = [
            line for line in ended.err.splitlines() if not line.endswith(": started") and " needs up to " not in line
        ]
        assert (ended.code, ended.out, len(lines)) == (2, "", 1), ended
        assert lines[0].startswith("error: ")
        return lines[0].removeprefix("error: ")

    return run


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with 80 small documents and a configuration."""
    monkeypatch.chdir(tmp_path)
    write_documents(tmp_path)
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    return tmp_path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text shards, a tokenizer and sample shards, made once by the command; to be read or copied only."""
    folder = tmp_path_factory.mktemp("made")
    write_documents(folder)
    for command in (
        "shuffle documents.jsonl -o shards --shards 2 --workers 1 --seed 1",
        "tokenizer shards -o tokenizer --vocab-size 96",
        "samples shards --tokenizer tokenizer -o samples --seq-len 32 --workers 1",
    ):
        subprocess.run([sys.executable, "-m", "kexue_train", *command.split()], cwd=folder, check=True)
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, kexue: Kexue) -> None:
    ended = kexue(*command.split(), "--help")
    assert ended.code == 0
    assert ended.out.startswith(f"Usage: kexue {command}")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_short_option_for_help_is_the_long_one(command: str, kexue: Kexue) -> None:
    assert kexue(*command.split(), "-h") == kexue(*command.split(), "--help")


def test_the_version_is_that_of_the_package(kexue: Kexue) -> None:
    ended = kexue("--version")
    assert (ended.code, ended.out, ended.err) == (0, f"kexue {__version__}\n", "")


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("kexue shuf", {"shuffle"}),
        ("kexue evaluate ", {"mlm", "nsp-zero-shot", "sts", "explain"}),
        ("kexue shuffle x --on-", {"--on-bad-record"}),
        ("kexue shuffle x --on-bad-record ", {"fail", "skip"}),
        ("kexue evaluate sts m d --pooling ", {"cls", "mean", "first-last"}),
    ],
)
def test_bash_completes_commands_options_and_choices(typed: str, offered: set[str]) -> None:
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split(" ")) - 1), "_KEXUE_COMPLETE": "complete_bash"}
    command = [sys.executable, "-c", "from kexue_train.cli import main; main()"]
    done = subprocess.run(command, env=os.environ | words, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == offered


def test_a_shuffle_whose_reader_has_read_enough_ends_quietly(
    here: Path, kexue: Kexue, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as nobody, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", nobody)
        ended = kexue("shuffle", "documents.jsonl", "-o", "-", "--workers", 1)
    assert ended.code == 141
    assert "error" not in ended.err


def test_bash_is_told_how_to_complete(kexue: Kexue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shellingham.detect_shell", lambda *_: ("bash", "/bin/bash"))
    assert "complete -o default -F _kexue_completion kexue" in kexue("--show-completion").out


@pytest.mark.parametrize("command", [line for line in COMMANDS if line != "evaluate"])
def test_every_command_has_an_example_and_json_in_its_help(command: str, kexue: Kexue) -> None:
    out = kexue(*command.split(), "--help").out
    assert f"Example:\n    kexue {command} " in out
    assert "--json" in out


def test_help_lists_every_command(kexue: Kexue) -> None:
    out = kexue("--help").out
    assert [name for name in COMMANDS if " " not in name and f"  {name} " not in out] == []


@pytest.mark.parametrize("arguments", [["--help"], ["pipeline", "--help"], ["shuffle", "--help"]])
def test_help_loads_no_heavy_library(arguments: list[str]) -> None:
    script = (
        "import sys\nfrom kexue_train.cli.app import main\n"
        f"sys.argv = ['kexue', *{arguments}]\n"
        f"try:\n    main()\nfinally:\n    print('HEAVY', sorted({HEAVY} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_the_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "kexue_train", "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: kexue ")


def test_text_becomes_shards_tokenizer_and_samples_that_verify(here: Path, kexue: Kexue) -> None:
    steps = [
        ("shuffle", "documents.jsonl", "-o", "shards", "--shards", "2", "--workers", "1"),
        ("verify", "shards"),
        ("tokenizer", "shards", "-o", "tokenizer", "--vocab-size", "96"),
        ("samples", "shards", "--tokenizer", "tokenizer", "-o", "samples", "--seq-len", "32", "--workers", "1"),
        ("verify", "samples"),
    ]
    said = [kexue(*step) for step in steps]
    assert [ended.code for ended in said] == [0] * 5, said
    assert said[0].out.startswith("shards: text_shards made, 80 rows, ")
    assert said[1].out.startswith("shards: text_shards whole, 80 rows, ")
    assert said[4].out.startswith("samples: sample_shards whole, ")


def test_json_is_the_manifest(made: Path, kexue: Kexue) -> None:
    ended = kexue("verify", made / "shards", "--json")
    assert json.loads(ended.out) == json.loads((made / "shards" / "manifest.json").read_text())
    assert ended.err == "verify: started\n"


def test_the_same_command_again_finds_its_work_done(made: Path, kexue: Kexue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    before = (made / "shards" / "manifest.json").stat().st_mtime_ns
    again = ["shuffle", "documents.jsonl", "-o", "shards", "--shards", "2", "--workers", "1", "--seed", "1"]
    assert kexue(*again).code == 0
    assert (made / "shards" / "manifest.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("stage", ["shards", "tokenizer", "samples"])
def test_verify_finds_one_flipped_byte_in_any_file(stage: str, made: Path, tmp_path: Path, refused: Kexue) -> None:
    for name in json.loads((made / stage / "manifest.json").read_text())["files"]:
        shutil.copytree(made / stage, tmp_path / stage, dirs_exist_ok=True)
        path = tmp_path / stage / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        assert Path(name).name in refused("verify", tmp_path / stage)


def test_other_settings_for_a_folder_with_work_are_refused_and_it_stays(made: Path, refused: Kexue) -> None:
    manifest = (made / "shards" / "manifest.json").read_bytes()
    message = refused("shuffle", made / "documents.jsonl", "-o", made / "shards", "--shards", 2, "--seed", 2)
    assert "seed changed from 1 to 2" in message
    assert (made / "shards" / "manifest.json").read_bytes() == manifest


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("shuffle document.jsonl -o x", ["document.jsonl: no such input file", "did you mean", "documents.jsonl?"]),
        ("shuffle documents.jsonl -o x --dedup exakt", ['dedup="exakt"', "'none', 'exact' or 'near'"]),
        ("shuffle documents.jsonl -o x --memory lots", ["'lots' cannot be read", "512MB"]),
        ("shuffle documents.jsonl -o x --text-key body", ["documents.jsonl:1", "no key 'body'", "'text'"]),
        ("shuffle documents.jsonl -o x --workers 2 --ray local", ["--workers and --ray"]),
        ("shuffle documents.jsonl -o .", ["holds no manifest.json", "left alone"]),
        ("shuffle documents.jsonl -o x.json", ["x.json: no file is written", "'.json'", ".jsonl", "write x.json/"]),
        ("shuffle documents.jsonl -o x.txt --to jsonl", ["x.txt: is a file of lines", "jsonl is asked for"]),
        ("shuffle documents.jsonl -o - --json", ["--json and --out -"]),
        ("verify nothing", ["nothing: no manifest.json"]),
        ("verify documents.jsonl", ["documents.jsonl: no manifest.json"]),
        ("tokenizer nothing -o x", ["nothing: no manifest.json"]),
        ("samples nothing --tokenizer x -o y", ["no "]),
        ("train -c tiny.yml --samples x -o y", ["no such configuration file, did you mean tiny.yaml?"]),
        ("train -c tiny.yaml --samples x -o y train.global_batch_size=7", ["not a multiple of", "4 or 8"]),
        ("train -c tiny.yaml --samples x -o y train.stepz=7", ["train.stepz", "did you mean 'steps'?"]),
        ("train -c tiny.yaml --samples x -o y --launcher slurm", ["slurm", "'ray', 'torchrun' or 'local'"]),
        ("pipeline -c tiny.yaml --run-dir .", ["not a run folder of kexue_train", "--run-dir"]),
        ("report .", ["no config.yaml", "not a run folder"]),
        ("report . .", ["two or more different run folders"]),
        ("report . --out x.html", ["--out is for comparisons"]),
    ],
)
def test_a_mistake_is_told_in_one_paragraph(command: str, words: list[str], here: Path, refused: Kexue) -> None:
    message = refused(*command.split())
    assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize(
    "command",
    ["export {0}/shards -o x", "import-weights {0}/shards -o x", "evaluate mlm {0}/shards {0}/samples -o x.json"],
)
def test_a_folder_of_another_stage_is_refused(command: str, made: Path, here: Path, refused: Kexue) -> None:
    assert refused(*command.format(made).split()).startswith(f"{made}/shards: ")


def test_training_on_text_shards_is_refused(made: Path, here: Path, refused: Kexue) -> None:
    message = refused("train", "-c", "tiny.yaml", "--samples", made / "shards", "-o", "x")
    assert "holds text_shards, not sample_shards" in message


def test_a_record_that_cannot_be_used_fails_or_is_skipped(here: Path, refused: Kexue, kexue: Kexue) -> None:
    with (here / "documents.jsonl").open("a") as file:
        file.write('{"text": 7}\n')
    assert "documents.jsonl:81" in refused("shuffle", "documents.jsonl", "-o", "x", "--workers", 1)
    ended = kexue("shuffle", "documents.jsonl", "-o", "x", "--workers", 1, "--on-bad-record", "skip", "--json")
    manifest = json.loads(ended.out)
    assert manifest["rows"] == 80
    assert sum(manifest["inputs"][0]["rejected"].values()) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_told(here: Path, refused: Kexue) -> None:
    (here / "closed").mkdir(mode=0o500)
    assert "closed/x: cannot be written" in refused("shuffle", "documents.jsonl", "-o", "closed/x", "--workers", 1)


def test_a_folder_below_a_file_is_told(here: Path, refused: Kexue) -> None:
    message = refused("shuffle", "documents.jsonl", "-o", "tiny.yaml/x", "--workers", 1)
    assert "tiny.yaml/x" in message


def test_too_little_disk_is_told_before_work_starts(
    here: Path, refused: Kexue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime.shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    message = refused("shuffle", "documents.jsonl", "-o", "x", "--workers", 1)
    assert "of disk and 100 B are free" in message


@pytest.mark.parametrize(
    ("number", "words", "code"),
    [
        (errno.ENOSPC, "the disk is full", 2),
        (errno.EDQUOT, "the disk quota is used up", 2),
        (errno.EACCES, "permission denied", 2),
        (errno.EMFILE, "ulimit -n", 2),
        (errno.EIO, os.strerror(errno.EIO), 1),
    ],
)
def test_an_error_of_the_system_is_explained(
    number: int, words: str, code: int, kexue: Kexue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number), "/some/file")

    monkeypatch.setattr("kexue_train.foundation.artifacts.read_manifest", fail)
    ended = kexue("verify", "x")
    assert (ended.code, ended.err.count("\n")) == (code, 1)
    assert ended.err.startswith("error: /some/file: ")
    assert words in ended.err


def test_an_internal_error_is_one_line_and_asks_for_debug(kexue: Kexue, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("odd")

    monkeypatch.setattr("kexue_train.foundation.artifacts.read_manifest", fail)
    ended = kexue("verify", "x")
    assert ended.code == 1
    assert ended.err.startswith("error: internal error, RuntimeError: odd. Run again with --debug")


@pytest.mark.parametrize("arguments", [["verify", "x", "--debug"], ["--debug", "verify", "x"]])
def test_debug_shows_the_traceback(arguments: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kexue_train", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode != 0
    assert done.stderr.startswith("Traceback (most recent call last):")
    assert "kexue_train.foundation.errors.ArtifactError: x: no manifest.json" in done.stderr


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("shuf", ["No such command 'shuf'", "'shuffle'?"]),
        ("shuffle", ["Missing option '--out'"]),
        ("shuffle x -o y --on-bad-recrod skip", ["No such option: --on-bad-recrod", "--on-bad-record)"]),
        ("shuffle x -o y --dedup exat", ['--dedup="exat"', "'none', 'exact' or 'near'", "did you mean 'exact'?"]),
        ("shuffle x -o y --shards -1", ["--shards=-1", "greater than 0"]),
        ("shuffle x -o y --shards 0", ["--shards=0", "greater than 0"]),
        ("shuffle x -o y --shards many", ['--shards="many"', "integer"]),
        ("shuffle x -o y --memory 5XB", ["--memory", "'5XB'", "5GB", "512MB"]),
        ("shuffle x -o y --to arow", ["--to", "'arrow'?"]),
        ("shuffle x -o y --filter max_repetitoin=0.3", ["max_repetitoin", "'max_repetition'?"]),
        ("shuffle x -o y --weight wiki", ["--weight 'wiki'", "KEY=NUMBER"]),
        ("tokenizer x -o y --max-bytes 5XB", ["--max-size", "'5XB'"]),
    ],
)
def test_a_wrong_command_line_is_refused_and_the_nearest_right_one_named(
    command: str, words: list[str], refused: Kexue
) -> None:
    message = refused(*command.split())
    assert [word for word in words if word not in message] == [], message


def test_json_is_alone_on_standard_output(here: Path, kexue: Kexue, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(out: Path, *, max_bytes: int, progress: Any) -> dict[str, Any]:
        progress.note("half of it is written")
        return {"documents": 3, "bytes": max_bytes}

    monkeypatch.setattr("kexue_train.corpus.installed_docs.write_docs_corpus", write)
    ended = kexue("corpus-from-docs", "--out", "c.jsonl", "--max-size", "4MB", "--json")
    assert json.loads(ended.out) == {"file": "c.jsonl", "documents": 3, "bytes": 4_000_000}
    assert "half of it is written" in ended.err
