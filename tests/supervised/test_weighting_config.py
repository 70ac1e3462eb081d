"""A weighting that cannot work is refused when the configuration is read, not after pretraining."""

from __future__ import annotations

from typing import Any

import pytest

from kexue_train.foundation.errors import ConfigError
from kexue_train.pipeline.run_config import RunConfig
from kexue_train.train.config import ObjectiveConfig

MIX = {"mlm": 3, "ocnli": 1}


def read(
    weighting: dict[str, Any],
    *,
    mix: dict[str, float] = MIX,
    train: dict[str, Any] = {},  # noqa: B006  # read only
    optimizer: dict[str, Any] = {},  # noqa: B006  # read only
    supervised: dict[str, Any] = {},  # noqa: B006  # read only
) -> RunConfig:
    values = {
        "name": "test",
        "corpus": {"source": "installed_docs"},
        "train": {"steps": 2000, "global_batch_size": 32, "micro_batch_size": 8, **train},
        "optimizer": optimizer,
        "supervised": {"data": "tasks", "mix": mix, "steps": 100, "weighting": weighting, **supervised},
    }
    return RunConfig.parse(values, where="run.yaml")


@pytest.mark.parametrize("weighting", [{"scheme": "online"}, {"scheme": "main-with-guards", "main": "mlm"}])
def test_a_weighting_that_fits_is_accepted(weighting):
    section = read(weighting).supervised
    assert section is not None
    assert section.weighting.scheme == weighting["scheme"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weighting": {"scheme": "online"}, "mix": {"mlm": 1}}, "scheme=online has no effect on mlm alone"),
        (
            {"weighting": {"scheme": "main-with-guards", "main": "c3"}},
            "main=c3 is not in the mix; take one of mlm, ocnli",
        ),
        (
            {"weighting": {"scheme": "min-norm"}, "optimizer": {"accumulate": "gradient"}},
            r"needs optimizer.accumulate=momentum \(got gradient\)",
        ),
        (
            {"weighting": {"scheme": "prior"}, "train": {"objective": {"loss_unit": "prior"}}},
            "loss_unit=prior and weighting.scheme=prior both measure",
        ),
        (
            {"weighting": {"scheme": "min-norm"}, "supervised": {"micro_batch_size": 32}},
            "every step has one micro-batch of 32 rows",
        ),
    ],
    ids=["one task", "main", "accumulate", "two units", "one micro-batch"],
)
def test_a_weighting_that_cannot_work_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        read(**changes)


def test_units_of_heads_go_with_weights_from_gradients_only():
    for scheme in ("gradient-norm", "min-norm"):
        ObjectiveConfig.parse({"loss_unit": "prior", "weighting": {"scheme": scheme}}, where="test")
    with pytest.raises(ConfigError, match="take one of them"):
        ObjectiveConfig.parse({"loss_unit": "online", "weighting": {"scheme": "initial"}}, where="test")
