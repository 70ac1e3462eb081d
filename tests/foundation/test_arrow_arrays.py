"""Arrow arrays over NumPy arrays and bytes, made without pandas."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from kexue_train.foundation.arrow_arrays import (
    from_mask,
    lengths_of,
    make_binary,
    to_arrow,
    to_binary,
    to_mask,
    values_bytes,
)


@pytest.mark.parametrize("size", [0, 1, 8, 1003])
def test_a_mask_holds_what_the_array_held(size: int) -> None:
    chosen = np.random.default_rng(size).random(size) < 0.5
    assert to_mask(chosen).to_pylist() == chosen.tolist()
    assert from_mask(to_mask(chosen)[3:]).tolist() == chosen[3:].tolist()


@pytest.mark.parametrize("kind", [np.int64, np.uint64, np.uint16])
def test_numbers_keep_their_type_and_values(kind: type) -> None:
    array = to_arrow(np.arange(5, dtype=kind))
    assert array.equals(pa.array(np.arange(5, dtype=kind)))


@pytest.mark.parametrize("values", [[], [b""], [b"a", b"", b"\0\xff"]])
def test_values_of_any_bytes_and_lengths(values: list[bytes]) -> None:
    array = to_binary(values)
    array.validate(full=True)
    assert array.to_pylist() == values
    assert values_bytes(array) == sum(map(len, values))
    assert lengths_of(array).tolist() == list(map(len, values))


def test_values_that_lie_one_after_the_other() -> None:
    assert make_binary(np.array([2, 0, 1], np.uint32), pa.py_buffer(b"abc")).to_pylist() == [b"ab", b"", b"c"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "content", "out"),
    [("in.txt", "a\n\n b\n", "out"), ("in.jsonl", '{"text": "a"}\n', "out.jsonl"), ("in.txt", "a\nb\n", "out.txt")],
)
def test_a_shuffle_loads_no_pandas(name: str, content: str, out: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    report = "atexit.register(lambda: print('pandas' in sys.modules))"
    code = f"import atexit, sys, kexue_train.cli.app as kexue; {report}; kexue.main()"
    arguments = ["shuffle", str(tmp_path / name), "-o", str(tmp_path / out), "--workers", "1"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
