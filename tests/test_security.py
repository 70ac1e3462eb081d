"""SECURITY.md names a test on every line, and the tests exist; some attacks that belong to no part alone."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kexue_train.foundation.config_file import read_yaml
from kexue_train.foundation.errors import ConfigError

ROOT = Path(__file__).parents[1]
LINES = [line for line in (ROOT / "SECURITY.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
ROWS = [line for line in LINES if not line.startswith(("| Attack |", "| What |"))]
SECRET_ADDRESS = "https://user:pLaNtEd9x@host/a?sig=pLaNtEd9x"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[2:42])
def test_every_line_names_tests_that_exist(row: str) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row.rpartition(" | ")[2])
    assert named
    missing = [name for file, name in named if f"def {name}(" not in (ROOT / file).read_text(encoding="utf-8")]
    assert not missing


def test_a_configuration_makes_no_python_objects(tmp_path: Path) -> None:
    made, file = tmp_path / "ran", tmp_path / "run.yaml"
    file.write_text(f"name: !!python/object/apply:os.mknod ['{made}']\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        read_yaml(file)
    assert not made.exists()


def test_only_consoles_that_show_printable_text_are_made() -> None:
    allowed = {Path("kexue_train/cli/terminal.py")}
    found = {
        path.relative_to(ROOT)
        for package in ("kexue_train", "flows")
        for path in (ROOT / package).rglob("*.py")
        if re.search(
            r"(?<![\w_])Console\(|sys\.__std(out|err)__|rich\.print|get_console\(", path.read_text(encoding="utf-8")
        )
    }
    assert found == allowed


def _kexue(folder: Path, *words: str, data: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "kexue_train", *words]
    return subprocess.run(command, input=data, capture_output=True, cwd=folder, check=False)


HOSTILE = json.dumps({"text": f"a\x1b[2J {SECRET_ADDRESS}"}, ensure_ascii=False).encode()


def test_documents_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(HOSTILE + b"\n")
    ended = _kexue(tmp_path, "shuffle", "a.jsonl", "-o", "b.jsonl", "--workers", "1")
    assert ended.returncode == 0, ended.stderr
    assert json.loads((tmp_path / "b.jsonl").read_bytes()) == json.loads(HOSTILE)


def test_data_on_standard_output_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a\x1b[2J\x9b " + SECRET_ADDRESS.encode() + b"\n")
    ended = _kexue(tmp_path, "shuffle", "a.txt", "-o", "-", "--workers", "1")
    assert ended.stdout == (tmp_path / "a.txt").read_bytes(), ended.stderr


def test_ray_and_loggers_see_a_masked_command_line() -> None:
    pytest.importorskip("ray")
    program = (
        "import sys, json; from kexue_train.foundation.shown import take_arguments\n"
        "from kexue_train.executor.ray_cluster import _mask_command_line\n"
        "from ray._private.utils import get_entrypoint_name\n"
        "given = take_arguments(); _mask_command_line(); print(json.dumps([given, sys.argv, get_entrypoint_name()]))"
    )
    override = f"corpus.inputs=[{SECRET_ADDRESS}]"
    ended = subprocess.run(
        [sys.executable, "-c", program, override],
        capture_output=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    given, recorded, entrypoint = json.loads(ended.stdout)
    assert given == [override]
    masked = "corpus.inputs=[https://***@host/a?sig=***]"
    assert recorded[1:] == [masked]
    assert masked in entrypoint
    assert "pLaNtEd" not in entrypoint
