"""The supervised stage: labelled tasks of many kinds and masked words train one encoder together, after pretraining.

config.py (the section ``supervised``), needs.py (recipes) -> records.py (files of the tasks, all their faults at once)
    -> label_rows.py (rows with labels) -> contamination.py (what of them the corpus has) -> stage.py (training)

Rows are read by ``batches/labelled.py`` and ``batches/mixed.py``, heads are in ``train/task_heads.py``, weights of the
tasks in ``train/weighting``; worker, loop, checkpoints and metrics are those of pretraining.

Source: https://kexue.fm/archives/8998, which gives the published RoFormerV2 such a second stage.
"""
