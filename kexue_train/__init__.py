"""Raw text in, a pretrained RoFormerV2 encoder out.

corpus -> shuffle -> tokenizer -> samples -> train -> export -> evaluate -> report

Each arrow is a stage: ``verb(config, input, out_dir, ...) -> Manifest``, idempotent, resumable and atomic.
Start reading at ``flows/pretrain_pipeline.py``, then the files found by ``grep -rn "STAGE" kexue_train``.
"""

import sys

from kexue_train.moved import MovedModules

if sys.platform == "win32":
    raise ImportError(
        "kexue_train does not run on Windows itself: it needs the file locks, signals and processes of Linux or macOS. "
        "Use WSL: run 'wsl --install' in PowerShell, restart, open Ubuntu, and install kexue_train there."
    )

__version__ = "0.1.0"
sys.meta_path.insert(0, MovedModules())
