"""Execute the notebooks of the documentation on a run, and keep their outputs.

``python -m tests.site.notebooks RUN`` renews those that are kept, and with a folder behind it writes there instead.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

NOTEBOOKS = Path(__file__).resolve().parents[2] / "docs" / "notebooks"


def execute(name: str, run: Path) -> Any:
    """Return the notebook ``name`` with its outputs, executed on ``run``.

    The kernel is this interpreter, reached through sockets in a folder of its own: no port, no file in the home folder.
    A cell that raises an error raises it here.
    """
    import nbformat
    from ipykernel.kernelspec import install
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    with tempfile.TemporaryDirectory(prefix="kexue-kernel-") as folder:
        install(prefix=folder, kernel_name="python3")
        manager = AsyncKernelManager(
            kernel_name="python3",
            kernel_spec_manager=KernelSpecManager(kernel_dirs=[f"{folder}/share/jupyter/kernels"]),
            connection_file=f"{folder}/kernel.json",
            transport="ipc",
        )
        client = NotebookClient(notebook, km=manager, timeout=600, resources={"metadata": {"path": str(NOTEBOOKS)}})
        client.execute(env=os.environ | {"KEXUE_RUN": str(run), "IPYTHONDIR": f"{folder}/ipython"})
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times, which no two executions share
        if cell.cell_type == "code":  # bars and warnings of libraries belong to the terminal
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


if __name__ == "__main__":
    import nbformat

    run, target = Path(sys.argv[1]).resolve(), Path(*sys.argv[2:3] or [NOTEBOOKS])
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        nbformat.write(execute(path.stem, run), target / path.name)
