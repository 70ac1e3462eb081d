"""Names of outputs, and the standard output."""

from __future__ import annotations

import contextlib
import gzip
import io
from pathlib import Path
from typing import IO

from kexue_train.cli.app import app
from kexue_train.cli.errors import run_command
from kexue_train.corpus.streams import open_stream
from tests.cases.command import kexue


def names_mean_what_they_say(data: Path) -> None:
    lines = sorted((data / "lines.txt").read_bytes().splitlines())
    for name, compression in (("out.txt.gz", "gzip"), ("out.jsonl.zst", "zstd"), ("out.csv", None)):
        ended = kexue(data, "shuffle", "lines.txt", "-o", name, "--workers", 1)
        assert ended.code == 0, ended.err
        with open_stream(str(data / name), compression) as stream:
            assert stream.read(10**6).count(b"\n") == len(lines) + (name == "out.csv")
    assert sorted(gzip.decompress((data / "out.txt.gz").read_bytes()).splitlines()) == lines
    before = sorted(data.iterdir())
    ended = kexue(data, "shuffle", "lines.txt", "-o", "out.json", "--workers", 1)
    assert ended.code == 2
    assert "'.json'" in ended.err
    assert sorted(data.iterdir()) == before


def full_standard_output(data: Path) -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        code, err = _shuffle_onto(full, data)
    assert code == 2
    assert "standard output" in err
    assert not any(word in err for word in ("partial", "kept", "delete"))


def closed_standard_output(data: Path) -> None:
    code, err = _shuffle_onto(None, data)  # as Python has it after ``>&-``
    assert code == 2
    assert "standard output is closed" in err
    assert "internal error" not in err


def _shuffle_onto(stdout: IO[str] | None, data: Path) -> tuple[int, str]:
    err = io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(err):
        code = run_command(app, ["shuffle", str(data / "lines.txt"), "-o", "-", "--workers", "1"], "kexue")
    return code, err.getvalue()


CHECKS = {
    "D12": names_mean_what_they_say,
    "D17": full_standard_output,
    "D21": closed_standard_output,
}
