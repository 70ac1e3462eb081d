"""The README.md of an exported model, written from what is known of its training.

``results_in_card.py`` adds to it what is found later.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kexue_train import __version__
from kexue_train.foundation.artifacts import CARD_NAME, Manifest
from kexue_train.model import RoFormerV2Config
from kexue_train.model.hf_folder import code_files
from kexue_train.optim.config import OptimizerConfig

_CARD = """\
---
library_name: transformers
pipeline_tag: fill-mask
tags: [roformer_v2, masked-lm, next-sentence-prediction]
---

# RoFormerV2, {layers} layers, hidden size {hidden}

Pretrained from {start} with kexue_train {version}: {steps} steps of {batch} rows, MLM and NSP, {optimizer}.

```python
from transformers import AutoModelForMaskedLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("PATH", trust_remote_code=True)
model = AutoModelForMaskedLM.from_pretrained("PATH", trust_remote_code=True)
```

`AutoModel`, `AutoModelForPreTraining` and `AutoModelForNextSentencePrediction` work alike, and with a fresh head so do
`...ForSequenceClassification`, `...ForTokenClassification`, `...ForQuestionAnswering` and `...ForMultipleChoice`.
`trust_remote_code` runs the files {files} of this folder.
Next-sentence class 0 means "B follows A", class 1 "B is from another document".

| | |
|---|---|
| layers · hidden · heads · feed-forward | {layers} · {hidden} · {heads} · {ffn} |
| vocabulary | {vocab} WordPiece units; the word table has {rows} rows, since matrix units like multiples of 128 |
| longest sequence in training | {positions} tokens at most |
| optimizer | {optimizer}, lr {lr}, beta {beta}, weight decay {decay} |
| seed | {seed} |
"""

_IMPORT_CARD = """\
---
library_name: transformers
pipeline_tag: fill-mask
tags: [roformer_v2, masked-lm]
---

# RoFormerV2, {layers} layers, hidden size {hidden}

Published weights in {form} form, imported with kexue_train {version}; every number is as published.

```python
from transformers import AutoModelForMaskedLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("PATH", trust_remote_code=True)
model = AutoModelForMaskedLM.from_pretrained("PATH", trust_remote_code=True)
```

{nsp}

| | |
|---|---|
| layers · hidden · heads · feed-forward | {layers} · {hidden} · {heads} · {ffn} |
| vocabulary | {vocab} WordPiece units |
| longest sequence in training | {positions} tokens at most |
"""
_NO_NSP = """\
**No next-sentence head.** The released models have none. `AutoModelForPreTraining` and
`AutoModelForNextSentencePrediction` start with a fresh one, which transformers reports as newly initialized: train it
before use.

The released models were trained with segment 0 only, for pairs too: row 1 of their segment table is untrained, so call
the tokenizer with `return_token_type_ids=False` unless you train the model further."""
_NSP = 'Next-sentence class 0 means "B follows A", class 1 "B is from another document".'


def write_import_card(folder: Path, form: str, config: RoFormerV2Config, *, has_nsp_head: bool) -> None:
    """Write ``folder/README.md`` for weights that others trained; ``form`` says in whose files they were."""
    card = _IMPORT_CARD.format(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        ffn=config.intermediate_size,
        vocab=config.num_tokens or config.vocab_size,
        positions=config.max_position_embeddings,
        version=__version__,
        form=form,
        nsp=_NSP if has_nsp_head else _NO_NSP,
    )
    (folder / CARD_NAME).write_text(card, encoding="utf-8")


def _rows_per_step(train: dict[str, Any]) -> str:
    """Return the rows per step, of every phase if there are several."""
    return ", then ".join(str(phase["global_batch_size"]) for phase in train.get("phases", [train]))


def write_model_card(folder: Path, checkpoint: Manifest, config: RoFormerV2Config) -> None:
    """Write ``folder/README.md``."""
    settings = checkpoint.settings
    optimizer = OptimizerConfig.parse(settings["optimizer"], where="the checkpoint's settings")
    card = _CARD.format(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        ffn=config.intermediate_size,
        vocab=config.num_tokens,
        rows=config.vocab_size,
        positions=config.max_position_embeddings,
        version=checkpoint.tool_version,
        steps=settings["step"],
        start="the weights of another model" if "init_from" in checkpoint.parents else "scratch",
        batch=_rows_per_step(settings["train"]),
        optimizer=optimizer.name,
        lr=optimizer.lr,
        beta=optimizer.momentum_decay,
        decay=optimizer.weight_decay,
        seed=settings["seed"],
        files=", ".join(f"`{name}`" for name in code_files(config)),
    )
    (folder / CARD_NAME).write_text(card, encoding="utf-8")
