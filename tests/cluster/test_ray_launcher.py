"""The files of Ray's cluster launcher against Ray's own schema."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).resolve().parents[2] / "cluster" / "ray"
NAMES = ["aws", "gcp", "on-prem"]

pytest.importorskip("ray")


def read(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8")))


def validate(config: dict[str, Any]) -> dict[str, Any]:
    """As ``ray up`` does before it calls a cloud."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared: dict[str, Any] = prepare_config(config)
    validate_config(prepared)
    return prepared


def test_these_are_all() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.yaml")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_ray_accepts_the_file(name: str) -> None:
    validate(read(name))


@pytest.mark.parametrize("name", NAMES)
def test_ray_refuses_a_misspelt_key(name: str) -> None:
    import jsonschema

    with pytest.raises(jsonschema.ValidationError, match="idle_timeout"):
        validate(read(name) | {"idle_timeout": 5})


@pytest.mark.parametrize("name", NAMES)
def test_every_node_asks_for_the_token_and_the_dashboard_stays_on_loopback(name: str) -> None:
    config = validate(read(name))
    started = [
        command
        for command in config["head_start_ray_commands"] + config["worker_start_ray_commands"]
        if "ray start" in command
    ]
    assert len(started) == 2
    assert all("RAY_AUTH_MODE=token" in command and "dashboard-host" not in command for command in started)
    assert list(config["file_mounts"]) == ["/home/kexue/.ray/auth_token"]


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_clouds_have_nodes_for_data_and_some_for_training_that_come_and_go(name: str) -> None:
    config = validate(read(name))
    types = config["available_node_types"]
    assert set(types) == {"head", "data", "train"}
    assert types["head"]["resources"] == {"CPU": 0}
    assert [types[kind]["min_workers"] for kind in ("data", "train")] == [2, 0]
    assert [types[kind]["resources"][kind] for kind in ("data", "train")] == [1, 1]
    assert sum(types[kind]["max_workers"] for kind in ("data", "train")) == config["max_workers"]
