"""The parameters of a flow run, which the server records, have no credentials; the flow has them all the same."""

from __future__ import annotations

import pytest

pytest.importorskip("prefect")

from flows.credentials import as_given, masked_parameters
from flows.tasks import _without_credentials
from kexue_train.foundation.errors import ConfigError, CorpusError

ADDRESS, MASKED = "https://u:secret9x@h/a?sig=secret9x", "https://***@h/a?sig=***"


def test_a_flow_is_called_with_masked_parameters_and_reads_them_as_given() -> None:
    options = {
        "overrides": [f"corpus.inputs=[{ADDRESS}]", "seed=1"],
        "inputs": [ADDRESS],
        "run_dir": None,
        "fresh": True,
    }
    with masked_parameters(options) as parameters:
        assert parameters == {
            "overrides": [f"corpus.inputs=[{MASKED}]", "seed=1"], "inputs": [MASKED], "run_dir": None, "fresh": True
        }  # fmt: skip
        assert as_given(parameters["overrides"]) == options["overrides"]
        assert as_given(parameters["inputs"]) == options["inputs"]
    assert as_given([MASKED]) == [MASKED]
    assert as_given(None) == []


def test_parameters_that_the_server_has_with_credentials_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"sig=\*\*\*: this parameter .* renew them, and write the address into"
    ) as refused:
        as_given([ADDRESS])
    assert "secret9x" not in str(refused.value)


def test_errors_of_others_reach_the_server_without_credentials() -> None:
    ours, plain = CorpusError(f"{ADDRESS}: is gone"), ValueError("3 is odd")
    assert _without_credentials(ours) is ours
    assert _without_credentials(plain) is plain
    assert repr(_without_credentials(ValueError(ADDRESS))) == f"RuntimeError('ValueError: {MASKED}')"
