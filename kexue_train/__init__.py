"""Raw text in, a pretrained RoFormerV2 encoder out.

corpus -> shuffle -> tokenizer -> samples -> train -> export -> evaluate -> report

Each arrow is a stage: ``verb(config, input, out_dir, ...) -> Manifest``, idempotent, resumable and atomic.
Start reading at ``flows/pretrain_pipeline.py``, then the files found by ``grep -rn "STAGE" kexue_train``.
"""

__version__ = "0.1.0"
