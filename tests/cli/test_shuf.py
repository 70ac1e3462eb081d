"""``kexue shuffle`` in the place of ``shuf``: the same lines and exit codes, where both are asked for the same."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from kexue_train.cli.app import app
from kexue_train.cli.errors import run_command
from kexue_train.cli.shuf import unread_variables

Shuffle = Callable[..., tuple[int, bytes, str]]


@pytest.fixture
def shuffle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Shuffle:
    """Run ``kexue shuffle ... -o -`` in a folder with a file of lines."""
    monkeypatch.chdir(tmp_path)
    Path("lines.txt").write_bytes(b"".join(b"%d\n" % i for i in range(30)))

    def run(*arguments: str, out: str = "-") -> tuple[int, bytes, str]:
        capfdbinary.readouterr()
        code = run_command(app, ["shuffle", *arguments, "-o", out, "--workers", "1"], "kexue")
        found = capfdbinary.readouterr()
        return code, found.out, found.err.decode()

    return run


@pytest.mark.skipif(not shutil.which("shuf"), reason="no shuf here")
@pytest.mark.parametrize(
    "arguments",
    [
        "lines.txt", "-n 0 lines.txt", "-n 7 lines.txt", "-n 99 lines.txt", "--head-count=30 lines.txt", "-e a b c",
        "-e", "-n 2 -e a", "-i 5-9", "--input-range=5-9", "-i 3-3", "-i 5-4", "empty.txt",
        "--random-source lines.txt lines.txt", "-z lines.txt", "-z -e a b", "-r -n 9 -i 1-1", "-r -n 0 lines.txt",
    ],
)  # fmt: skip
def test_as_many_of_the_same_lines_as_from_shuf(shuffle: Shuffle, arguments: str) -> None:
    Path("empty.txt").touch()
    expected = subprocess.run(["shuf", *arguments.split()], capture_output=True, check=True).stdout
    code, out, err = shuffle(*arguments.split())
    assert code == 0, err
    end = b"\0" if "-z" in arguments else b"\n"
    found, wanted = out.split(end), expected.split(end)
    assert found[-1] == wanted[-1] == b""
    assert len(found) == len(wanted)
    if arguments.startswith(("-n 7", "-n 2")):
        assert set(found) <= {b"", b"a", *(b"%d" % i for i in range(30))}
    else:
        assert sorted(found) == sorted(wanted)


def test_the_random_source_decides_the_order(shuffle: Shuffle) -> None:
    Path("a.bin").write_bytes(b"some bytes")
    Path("b.bin").write_bytes(b"other bytes")
    results = [shuffle("lines.txt", "--random-source", f"{name}.bin")[1] for name in "aab"]
    assert results[0] == results[1] != results[2]
    assert shuffle("lines.txt", "--random-source", "/dev/urandom")[0] == 0


@pytest.mark.parametrize("name", ["", "-", "/dev/stdin"])
def test_lines_come_from_the_standard_input(shuffle: Shuffle, name: str) -> None:
    with Path("lines.txt").open() as lines, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", lines)
        code, out, _ = shuffle(*filter(None, [name]))
    assert code == 0
    assert sorted(out.split()) == sorted(b"%d" % i for i in range(30))


def test_process_substitution_is_an_input(shuffle: Shuffle) -> None:
    ends = [os.pipe(), os.pipe()]
    for number, (_, writing) in enumerate(ends):
        os.write(writing, b"%d\n" % number)
        os.close(writing)
    code, out, err = shuffle(*(f"/dev/fd/{reading}" for reading, _ in ends))
    for reading, _ in ends:
        os.close(reading)
    assert (code, sorted(out.split())) == (0, [b"0", b"1"]), err


def test_output_in_place(shuffle: Shuffle) -> None:
    before = Path("lines.txt").read_bytes()
    assert shuffle("lines.txt", out="lines.txt")[0] == 0
    after = Path("lines.txt").read_bytes()
    assert after != before
    assert sorted(after.split()) == sorted(before.split())


@pytest.mark.parametrize(
    ("arguments", "out", "parts"),
    [
        ("-n 5 lines.txt", "folder", ["folder: would be a folder", "--head-count", "out.txt"]),
        ("-e a b", "folder", ["folder: would be a folder", "--echo"]),
        ("-i 1-9 lines.txt", "-", ["--input-range takes the place of inputs"]),
        ("-i 1-9 -e", "-", ["--input-range takes the place of inputs"]),
        ("-i 9-1", "-", ["--input-range '9-1'", "LO-HI", "1-100"]),
        ("-r lines.txt", "-", ["--repeat draws lines without end", "--head-count"]),
        ("-r -n 1 empty.txt", "-", ["hold no line to draw"]),
        ("-n -1 lines.txt", "-", ["--head-count=-1", "greater than or equal to 0"]),
        ("--seed 3 --random-source lines.txt lines.txt", "-", ["--seed and --random-source"]),
        ("--random-source empty lines.txt", "-", ["empty: is empty", "--seed"]),
        ("--random-source missing lines.txt", "-", ["missing: cannot be read"]),
    ],
)
def test_what_cannot_be_is_refused_by_name(shuffle: Shuffle, arguments: str, out: str, parts: list[str]) -> None:
    Path("empty").touch()
    Path("empty.txt").touch()
    before = sorted(Path().iterdir())
    code, printed, err = shuffle(*arguments.split(), out=out)
    assert (code, printed) == (2, b"")
    assert all(part in err for part in parts), err
    assert sorted(Path().iterdir()) == before


def test_an_argument_with_a_line_end_is_a_line_only_with_another_end(shuffle: Shuffle) -> None:
    code, _, err = shuffle("-e", "a", "b\nc")
    assert code == 2
    assert "--echo: argument 2 has a line end in it" in err
    assert sorted(shuffle("-z", "-e", "a", "b\nc")[1].split(b"\0")) == [b"", b"a", b"b\nc"]


def test_the_variables_of_terashuf_are_named(shuffle: Shuffle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMORY", "4.0")
    code, _, err = shuffle("lines.txt")
    assert code == 0
    assert "MEMORY='4.0' in the environment has no effect here; the option is --memory" in err
    environment = {"TMPDIR": "/scratch", "SKIP": "1", "HOME": "/root"}
    assert [line.split("=")[0] for line in unread_variables(environment, spills_to_tmpdir=False)] == ["SKIP", "TMPDIR"]
    assert [line.split("=")[0] for line in unread_variables(environment, spills_to_tmpdir=True)] == ["SKIP"]
