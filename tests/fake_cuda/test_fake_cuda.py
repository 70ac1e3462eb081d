"""Training as on CUDA without a GPU: torch's fake tensors dispatch as there and compute nothing; `make test-fake-cuda`.

The cases run in a process of their own, into which a stand-in for the driver is loaded before torch is.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.fake_cuda
@pytest.mark.skipif(torch.version.cuda is None, reason="needs a CUDA build of torch: make test-fake-cuda")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: make gpu")
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_every_case_holds_on_fake_cuda(tmp_path):
    library = tmp_path / "libcuda.so.1"
    subprocess.run(
        ["cc", "-shared", "-fPIC", f"-Wl,-soname,{library.name}", "-o", library, HERE / "no_driver.c"], check=True
    )
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", HERE / "cuda_cases.py"],
        env=os.environ | {"LD_PRELOAD": str(library), "NO_DRIVER": str(library), "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"\d+ passed", result.stdout), result.stdout
    assert "skipped" not in result.stdout, result.stdout
