"""The fused kernels: interpreted on a CPU, compiled for GPUs that need not be there, and run on one if it is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is made for Linux only")

CASES = Path(__file__).with_name("triton_cases.py")


def run(*command: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, *command], env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.slow
def test_every_case_holds_in_the_interpreter():
    output = run(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES), TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES=""
    )
    assert re.search(r"\d+ passed, 1 skipped", output), output


@pytest.mark.slow
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_every_case_holds_on_a_gpu():
    output = run("-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES), TRITON_INTERPRET="0")
    assert "skipped" not in output, output


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_compiles_to_loads_and_stores_of_sixteen_bytes(kind, capability, tmp_path, monkeypatch):
    """Also where addresses come from a table, of which a compiler knows nothing unless it is told."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from triton import language as tl

    from kexue_train.optim import triton_tiger as kernels

    tile = {"rows": kernels.TILE_ROWS, "columns": kernels.TILE_COLUMNS}
    parameter = {"parameter_type": {"fp32": tl.float32, "bf16": tl.bfloat16}[kind]}
    momentum = {"momentum_type": parameter["parameter_type"]}
    places = {"seed": "i64", "stream": "i64"}
    eight = {"grad": f"*{kind}", "index": "i32", "end": "i32"}
    given = {f"{name}_{number}": types for name, types in eight.items() for number in range(8)}
    del given["end_7"]  # where all end
    move = {"tiles": "*i64", "step": "*fp32", "decay": "*fp32", "dead_zone": "fp32", **places}
    check = {"tensors": "*i64", "flags": "*fp32", "verdicts": "*i32", **given}
    fold = {"tensors": "*i64", "verdicts": "*i32", **given, "decay": "fp32", "weight": "fp32", **places}
    size = {"checkers": kernels.CHECKERS, "block": kernels.CHUNK}

    def vectors(kernel, signature, **constants) -> tuple[int, int]:
        ptx = ptx_of(kernel, signature, constants, capability)
        return len(re.findall(r"ld\.global\S*\.v4", ptx)), len(re.findall(r"st\.global\S*\.v4", ptx))

    # Sixteen elements per thread of each tensor that is read or written.
    each = 16 * {"fp32": 4, "bf16": 2}[kind] // 16
    assert vectors(kernels.check_gradients, check, **size)[0] == each
    assert vectors(kernels.fold_gradients, fold, **momentum, **size) == (2 * each, each)
    assert vectors(kernels.sum_tile_squares, {"tiles": "*i64", "sums": "*fp32"}, **parameter, **tile)[0] == each
    assert vectors(kernels.move_tiles, move, **parameter, **momentum, **tile) == (2 * each, each)


def ptx_of(kernel, signature: dict[str, str], constants: dict[str, object], capability: int) -> str:
    """What Triton compiles a kernel to, for pointers to aligned memory; of gradients it looks at the address itself."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from kexue_train.optim import triton_tiger

    types = signature | dict.fromkeys(constants, "constexpr")
    aligned = {
        (kernel.arg_names.index(name),): [["tt.divisibility", 16]]
        for name, kind in signature.items()
        if kind.startswith("*") and not name.startswith("grad_")
    }
    source = ASTSource(
        fn=kernel, signature={n: types[n] for n in kernel.arg_names}, constexprs=constants, attrs=aligned
    )
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options={"num_warps": triton_tiger.WARPS}).asm["ptx"]


def test_without_cuda_nothing_imports_triton():
    run("-c", "import sys, kexue_train.optim.tiger; sys.exit('triton' in sys.modules)")
