"""The image: pinned, not root, complete; and compose: loopback only, no secret, references that lead somewhere."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "cluster/image/Dockerfile").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "cluster/compose/compose.yaml").read_text(encoding="utf-8"))
INSTRUCTIONS = {"FROM", "ARG", "ENV", "RUN", "COPY", "WORKDIR", "USER", "CMD"}
SERVICE_KEYS = {
    "image", "build", "init", "restart", "command", "environment", "shm_size", "ipc", "pid", "network_mode", "ports",
    "volumes", "deploy", "stop_grace_period", "healthcheck", "depends_on", "cap_drop", "security_opt", "read_only",
    "tmpfs", "pids_limit", "ulimits", "networks",
}  # fmt: skip


def instructions() -> list[tuple[str, str]]:
    """(instruction, what follows), lines joined, comments left out."""
    joined = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.M))
    lines = [line.strip() for line in joined.splitlines() if line.strip()]
    return [(line.split()[0], line.partition(" ")[2]) for line in lines]


def test_only_known_instructions_in_stages_that_exist() -> None:
    assert {name for name, _ in instructions()} <= INSTRUCTIONS
    stages = [re.search(r" AS (\S+)$", rest) for name, rest in instructions() if name == "FROM"]
    assert [match and match[1] for match in stages] == ["build-cpu", "build-cuda", "build", "run"]
    assert re.findall(r"--from=(\S+)", DOCKERFILE) == ["build"]
    assert "FROM build-${VARIANT} AS build" in DOCKERFILE


def test_every_installation_takes_the_pins() -> None:
    installs = re.findall(r"pip install (.*?)(?: &&|$)", DOCKERFILE, flags=re.M)
    assert installs == ["-c constraints.txt '.[all]'", "--no-deps ."]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "all" in project["optional-dependencies"]
    python = re.search(r"^ARG PYTHON=(\S+)", DOCKERFILE, re.M)
    assert python
    assert project["requires-python"] == f">={python[1]}"


def test_the_image_runs_as_nobody_in_particular() -> None:
    users = [rest for name, rest in instructions() if name == "USER"]
    assert users == ["1000:1000"]
    after = instructions()[[name for name, _ in instructions()].index("USER") :]
    assert {name for name, _ in after} <= {"USER", "WORKDIR", "CMD"}


def test_what_is_copied_is_there_and_reaches_the_build() -> None:
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for name, rest in instructions():
        if name == "COPY" and "--from" not in rest:
            *sources, _ = rest.split()
            for source in sources:
                if "[" not in source:  # may be missing
                    assert (ROOT / source).exists(), source
                    assert source.split("/")[0] in let_in


def test_compose_uses_known_keys_and_the_one_image() -> None:
    assert {key for key in COMPOSE if not key.startswith("x-")} == {"name", "services", "networks", "volumes"}
    for service in COMPOSE["services"].values():
        assert service.keys() <= SERVICE_KEYS
        assert service["image"] == "kexue_train:${VARIANT:-cuda}"
        assert (ROOT / "cluster/compose" / service["build"]["context"] / service["build"]["dockerfile"]).exists()
        named = {volume.split(":")[0] for volume in service.get("volumes", []) if not volume.startswith("$")}
        assert named <= COMPOSE["volumes"].keys()
        assert set(service.get("depends_on", {})) <= COMPOSE["services"].keys()
    arguments = set(COMPOSE["services"]["ray"]["build"]["args"])
    assert arguments <= set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.M))


def test_compose_lets_the_prefect_worker_be_a_driver_on_the_node_of_ray() -> None:
    worker = COMPOSE["services"]["prefect-worker"]
    assert {worker[key] for key in ("network_mode", "ipc", "pid")} == {"service:ray"}


def test_compose_publishes_on_loopback_only() -> None:
    ports = [port for service in COMPOSE["services"].values() for port in service.get("ports", [])]
    assert len(ports) == 3
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_compose_takes_the_token_from_the_environment_and_refuses_to_start_without() -> None:
    tokens = [
        s["environment"]["RAY_AUTH_TOKEN"]
        for s in COMPOSE["services"].values()
        if "RAY_AUTH_TOKEN" in s.get("environment", {})
    ]
    assert len(tokens) == 2
    assert all(token.startswith("${RAY_AUTH_TOKEN:?") for token in tokens)


@pytest.mark.parametrize(("name", "service"), COMPOSE["services"].items())
def test_compose_gives_containers_no_rights_and_limits(name: str, service: dict[str, Any]) -> None:
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    assert {entry.split(":")[0] for entry in service["tmpfs"]} == {"/tmp", "/home/kexue"}
    assert all("exec" in entry.split(":")[1].split(",") for entry in service["tmpfs"])  # compiled kernels lie there
    assert service["pids_limit"] > 0
    assert service["ulimits"]["memlock"] == -1
    assert service["deploy"]["resources"]["limits"]["memory"]
    assert "privileged" not in service
    assert "cap_add" not in service


def test_compose_asks_for_prefects_password_and_its_worker_has_it() -> None:
    server, worker = (COMPOSE["services"][name]["environment"] for name in ("prefect-server", "prefect-worker"))
    assert server["PREFECT_SERVER_API_AUTH_STRING"].startswith("${PREFECT_AUTH:?")
    assert worker["PREFECT_API_AUTH_STRING"] == server["PREFECT_SERVER_API_AUTH_STRING"]
    header = (ROOT / "cluster/compose/compose.yaml").read_text(encoding="utf-8").partition("name: kexue")[0]
    variables = set(re.findall(r"\$\{(\w+):\?", str(COMPOSE)))
    assert {name for name in variables if f"{name}=" in header} == variables  # the header makes each that is needed


def test_tensorboard_which_asks_for_nothing_reaches_no_other_service() -> None:
    networks = {name: service.get("networks", ["default"]) for name, service in COMPOSE["services"].items()}
    assert networks.pop("tensorboard") == ["board"]
    assert "board" not in [network for names in networks.values() for network in names]


def test_compiled_kernels_lie_where_the_image_may_be_written() -> None:
    caches = re.findall(r"(?:TRITON|TORCHINDUCTOR)_CACHE_DIR=(\S+)", DOCKERFILE)
    assert len(caches) == 2
    assert all(cache.startswith("/tmp/") for cache in caches)


# What could hold a secret or open a port.
FILES = sorted(path for path in (ROOT / "cluster").rglob("*") if path.is_file())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_address_is_open_without_a_word_why(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        if re.search(r"0\.0\.0\.0|\[::\]", line) and path.suffix != ".md":
            before = lines[max(0, number - 2) : number + 1]
            assert any("#" in near for near in before), f"{path}:{number + 1}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_secret_is_written_down(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert re.findall(r"AKIA[0-9A-Z]{16}|-----BEGIN|(?:ghp|pnu|hf)_\w{20,}|\b[0-9a-f]{32,}\b", text) == []
    assigned = re.findall(r"(?i)\b(?:\w*token|\w*password|\w*secret)\b *[:=] *[\"']?([A-Za-z0-9]{6,})", text)
    assert [word for word in assigned if word not in {"secretKeyRef"}] == []
