"""What an exported model is worth. This wing needs only the model's folder, never training's own objects.

In goes a folder that ``from_pretrained`` opens (``hf`` of a run, or any other), and data sets with answers. Out come
result files (``results/``), which the terminal, the report, the model card and comparisons show.

    settings.py      what a user may choose, without torch    results/        every kind of result, without torch
    load_model.py    the model and its tokenizer              task_files.py   JSON Lines records, YAML files of tasks
    sequences.py     texts -> token sequences -> batches      folder_code.py  whose Python code a folder may have run
    evaluate/        scores without training: held-out text, zero-shot tasks, sentence vectors, explanations
    finetune/        scores after training: labelled tasks, few records as next sentences, sentence vectors
    paraphrase/      texts that a model of ``finetune/paraphrase`` writes, by sampling or search

Start with ``evaluate/evaluate_model.py``, the stage of a run, then ``results/result.py``. A new evaluation is one
function that returns a result, one file in ``results/`` for its kind with an entry in ``results/files.py``, and one
command in ``cli/evaluate.py``; the report, the card and comparisons need no change.
"""
