"""A model with its pooling, and its whitening if it has one, as a folder that ``SentenceTransformer`` opens.

The model lies at the top, so ``AutoModel`` opens the folder too. The modules follow in folders of their own:

    first-last: layer weights (1 for the first layer and the last, 0 for the others); pooling: cls or mean;
    whitening: a dense layer, y = Wᵀx - Wᵀμ

Source: the format of sentence-transformers, with the names that all its versions read.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from kexue_train.downstream.evaluate.sentence_vectors.whitening import Whitening
from kexue_train.downstream.load_model import LoadedHead
from kexue_train.downstream.settings import Pooling
from kexue_train.foundation.artifacts import MANIFEST_NAME

_MODULES = "sentence_transformers.models."
_LEFT_OUT = (MANIFEST_NAME, "README.md")
_WEIGHTS = (".safetensors", ".bin", ".index.json")
_README = """---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
---

# Sentence vectors

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{name}", trust_remote_code=True)
vectors = model.encode(["a sentence", "another one"])
```

Compare them by their cosine. Pooling: {pooling}; {last}
"""


def write_sentence_transformers_folder(
    loaded: LoadedHead,
    folder: Path,
    name: str,
    *,
    pooling: Pooling,
    max_length: int,
    whitening: Whitening | None = None,
    has_new_weights: bool = False,
) -> None:
    """Write the model, a README and the modules into ``folder``.

    Args:
        loaded: The encoder; its own folder gives configuration, tokenizer and code.
        folder: An existing folder.
        name: The folder's name when it is finished.
        pooling: How states become a vector.
        max_length: Tokens of a sentence.
        whitening: What follows the pooling.
        has_new_weights: Write the weights in memory, in place of the files.
    """
    _copy_model(loaded, folder, has_new_weights=has_new_weights, with_states=pooling == "first-last")
    write_modules(folder, name, loaded.model.config, pooling=pooling, max_length=max_length, whitening=whitening)


def write_modules(
    folder: Path, name: str, config: Any, *, pooling: Pooling, max_length: int, whitening: Whitening | None = None
) -> None:
    """Write a README and the modules into a ``folder`` that holds a model already; else as above.

    ``config`` is that of the model. With the pooling ``first-last`` it has to return its hidden states.
    """
    size, layers = int(config.hidden_size), int(config.num_hidden_layers)
    modules = [("", "Transformer")]
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    if pooling == "first-last":
        weights = torch.zeros(layers)
        weights[[0, -1]] = 1.0
        values = {"word_embedding_dimension": size, "layer_start": 1, "num_hidden_layers": layers}
        _write_module(folder, modules, "WeightedLayerPooling", values, {"layer_weights": weights})
    modes = {"pooling_mode_cls_token": pooling == "cls", "pooling_mode_mean_tokens": pooling != "cls"}
    _write_module(folder, modules, "Pooling", {"word_embedding_dimension": size, **modes})
    if whitening is not None:
        transform = torch.from_numpy(np.ascontiguousarray(whitening.transform.T)).float()
        bias = torch.from_numpy(-whitening.mean @ whitening.transform).float()
        sizes = {"in_features": size, "out_features": len(bias), "bias": True}
        linear = {"activation_function": "torch.nn.modules.linear.Identity"}
        _write_module(folder, modules, "Dense", sizes | linear, {"linear.weight": transform, "linear.bias": bias})
    listed = [
        {"idx": number, "name": str(number), "path": path, "type": _MODULES + kind}
        for number, (path, kind) in enumerate(modules)
    ]
    _write_json(folder / "modules.json", listed)
    last = "no whitening." if whitening is None else f"whitened to {whitening.transform.shape[1]} dimensions."
    (folder / "README.md").write_text(_README.format(name=name, pooling=pooling, last=last), encoding="utf-8")


def _write_module(
    folder: Path,
    modules: list[tuple[str, str]],
    kind: str,
    values: dict[str, Any],
    tensors: Mapping[str, torch.Tensor] | None = None,
) -> None:
    path = f"{len(modules)}_{kind}"
    modules.append((path, kind))
    (folder / path).mkdir(exist_ok=True)
    _write_json(folder / path / "config.json", values)
    if tensors:
        save_file(dict(tensors), folder / path / "model.safetensors", metadata={"format": "pt"})


def _copy_model(loaded: LoadedHead, folder: Path, *, has_new_weights: bool, with_states: bool) -> None:
    for path in loaded.folder.iterdir():
        is_weights = path.name.endswith(_WEIGHTS)
        if path.is_file() and path.name not in _LEFT_OUT and not (is_weights and has_new_weights):
            shutil.copyfile(path, folder / path.name)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if has_new_weights:
        tensors = {key: tensor.cpu().contiguous() for key, tensor in loaded.model.state_dict().items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        config["architectures"] = [type(loaded.model).__name__]
    if with_states:
        config["output_hidden_states"] = True
    _write_json(folder / "config.json", config)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
