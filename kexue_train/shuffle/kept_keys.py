"""Which keys of the inputs are kept besides the text: all of them if that is asked for; what is not kept is told."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from kexue_train.corpus.inputs import Source
from kexue_train.corpus.readers import read_records
from kexue_train.corpus.records import ReadOptions
from kexue_train.corpus.streams import is_pipe
from kexue_train.foundation.errors import ConfigError
from kexue_train.shuffle.config import ShuffleConfig
from kexue_train.shuffle.scatter_result import ScatterResult

_LOOK_BYTES = 64 * 2**10
_MAX_NAMES, _MAX_CHARS = 5, 60
_HOW_TO_KEEP = "--keep NAME keeps one, --keep-all all; in a configuration shuffle.keep, shuffle.keep_all"


def with_all_kept(config: ShuffleConfig, sources: Sequence[Source]) -> ShuffleConfig:
    """Return the configuration with the keys of the inputs in ``keep`` if it says ``keep_all``, else as it is.

    Of JSON the first records of each input are looked at, of other formats the columns.

    Raises:
        ConfigError: If a key cannot be kept, or an input is a pipe, which can be read only once.
        CorpusError: If an input cannot be read.
    """
    if not config.keep_all:
        return config
    options = ReadOptions(text_keys=config.text_keys, document=config.document, block_bytes=_LOOK_BYTES)
    found: set[str] = set()
    for source in sources:
        if is_pipe(source.path):
            raise ConfigError(
                f"{source.path}: is read once, so its keys are not known beforehand; name them with --keep"
            )
        for block in islice(read_records(source, options), 1):
            found |= block.unread
    if "text" in found:
        raise ConfigError(
            f"the inputs have a key 'text' beside '{', '.join(config.text_keys)}', and that column holds the "
            "text; name the other keys with --keep"
        )
    return config.model_copy(update={"keep": tuple(sorted(found))})


def describe_unread(config: ShuffleConfig, scattered: Sequence[ScatterResult]) -> str | None:
    """Return one line about the keys that are not kept; None if there are none."""
    unread = sorted({key for result in scattered for key in result.unread_keys})
    if not unread:
        return None
    advice = "plain lines hold the text alone" if config.output == "lines" else _HOW_TO_KEEP
    return f"not kept: {name_keys(unread)} ({advice})"


def name_keys(keys: Sequence[str]) -> str:
    """Return the first few keys, and how many more there are."""
    names = ", ".join(f"'{key[:_MAX_CHARS]}'" for key in keys[:_MAX_NAMES])
    return names + (f" and {len(keys) - _MAX_NAMES:,} more" if len(keys) > _MAX_NAMES else "")
