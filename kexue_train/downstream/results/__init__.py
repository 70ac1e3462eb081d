"""The results of evaluation and fine-tuning: one form for all, read and written without torch.

``result.py`` says what a result is: a kind, tables, notes, scores, failures and headlines. Each other file holds the
typed contents of one kind, which are its JSON file, and how they are shown. ``files.py`` lists the kinds, and is the
only writer and the only reader. The terminal, the report, the model card and comparisons show any result alike.

A new kind is one file here and one entry in ``files.RESULT_TYPES``.
"""
