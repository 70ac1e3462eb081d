"""What the readers of Parquet and Arrow files say of a file that is damaged, or of a part of it that is too large."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from kexue_train.foundation.errors import CorpusError, DamagedInputError, MemoryLimitError
from kexue_train.foundation.runtime import format_size


@contextmanager
def explain_damage(path: str, kind: str) -> Iterator[None]:
    """Turn what Arrow raises into an error that names the file; ``kind`` is the format."""
    try:
        yield
    except (pa.ArrowException, OSError, MemoryError, UnicodeDecodeError) as error:  # what damaged metadata leads to
        if isinstance(error, OSError) and error.errno is not None:
            raise CorpusError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
        first, _, _ = str(error).partition("\n")
        if isinstance(error, pa.ArrowNotImplementedError):
            raise CorpusError(
                f"{path}: uses a part of {kind} that pyarrow {pa.__version__} cannot read ({first}); write the file "
                "again without it, or leave it out"
            ) from None
        raise DamagedInputError(
            f"{path}: damaged, or not a file of format {kind} ({first or 'it needs more memory than there is'}); "
            "fetch or make the file again, or leave it out"
        ) from None


def too_large(path: str, part: str, need_bytes: int, have_bytes: int, remedy: str) -> MemoryLimitError:
    """Return the refusal of a part of a file.

    Args:
        path: The file.
        part: What in it is too large, and how large it is.
        need_bytes: What reading it takes.
        have_bytes: What a reader may take.
        remedy: What to do with the file.
    """
    return MemoryLimitError(
        f"{path}: {part} cannot be read in smaller parts; that takes up to {format_size(need_bytes)}, and "
        f"{format_size(have_bytes)} are there for it; {remedy}",
        need_bytes,
    )
