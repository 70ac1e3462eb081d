from __future__ import annotations

import pytest

from kexue_train.corpus.config import CorpusConfig
from kexue_train.foundation.errors import ConfigError


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_size": "16 parsecs"}, "corpus.*16 parsecs"),
        ({"source": "installed_docs", "inputs": ["a.txt"]}, "remove it, or set source: files"),
        ({"source": "web"}, "installed_docs"),
    ],
)
def test_a_wrong_value_is_named(values, message):
    with pytest.raises(ConfigError, match=message):
        CorpusConfig.parse(values, where="corpus.yaml")
