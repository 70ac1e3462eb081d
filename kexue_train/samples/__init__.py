"""Text shards -> tokenizer -> sample shards: rows of exactly ``seq_len`` token slots, ready for masking at load time.

text shards --tokenizer.py--> tokenizer folder --build_samples.py--> sample shards

Within a sample task: sentences.py cuts, words.py and encode.py tokenize and mark words, nsp.py makes sequences,
rows.py packs them into rows and lays those out in the form of schema.py, row_counts.py counts what is in them.
mix_rows.py mixes the rows of all shards, if so configured; verify.py checks the result. mlm.py masks rows when they
are read.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kexue_train.samples.mlm import mask_tokens

__all__ = ["mask_tokens"]


def __getattr__(name: str) -> Any:
    if name == "mask_tokens":
        from kexue_train.samples.mlm import mask_tokens  # noqa: PLC0415  # importing a package stays light

        return mask_tokens
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
