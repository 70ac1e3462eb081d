"""An interpreter that starts at once, for programs that start training workers: torchrun, Ray, shells, Prefect."""

from __future__ import annotations

import atexit
import functools
import shutil
import sys
import tempfile
from pathlib import Path

from tests.train.warm_worker import forker

_TEXT = Path(__file__).with_name("stand_in.py")


@functools.cache
def warm_python() -> str:
    """Make an executable that takes the words of ``python``; what needs torch runs in a fork, see ``stand_in.py``.

    It lies in the ``bin`` of a virtual environment with the packages of this one.
    """
    folder = Path(tempfile.mkdtemp(prefix="kexue-python-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name in ("pyvenv.cfg", "lib"):
        (folder / name).symlink_to(Path(sys.prefix) / name)
    (folder / "bin").mkdir()
    (folder / "bin" / "forker").symlink_to(forker())
    executable = folder / "bin" / "python"
    executable.write_text(f"#!{sys.executable} -ISE\n{_TEXT.read_text(encoding='utf-8')}", encoding="utf-8")
    executable.chmod(0o755)
    return str(executable)
