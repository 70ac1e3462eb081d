"""The manifests: only known keys, references that lead somewhere, nothing privileged, no secret, nothing open."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kexue_train.executor.config import ExecutionConfig

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "cluster" / "kubernetes"

# What is allowed where; "!" marks what must be there, None a value, [shape] a list, {"*": shape} any names.
ANY = {"*": None}
META = {"name": None, "generateName": None, "labels": ANY, "namespace": None}
SECRET_KEY = {"valueFrom!": {"secretKeyRef!": {"name!": None, "key!": None}}}
CONTAINER = {
    "name!": None, "image!": None, "command": [None], "ports": [{"name!": None, "containerPort!": None}],
    "env": [{"name!": None, "value": None, "valueFrom": SECRET_KEY["valueFrom!"]}],
    "resources!": {"requests!": {"cpu!": None, "memory!": None},
                   "limits!": {"cpu": None, "memory!": None, "nvidia.com/gpu": None}},
    "readinessProbe": {"httpGet!": {"path!": None, "port!": None}, "initialDelaySeconds": None, "periodSeconds": None,
                       "failureThreshold": None},
    "securityContext!": {"allowPrivilegeEscalation!": None, "capabilities!": {"drop!": [None]}},
    "volumeMounts": [{"name!": None, "mountPath!": None}],
}  # fmt: skip
POD = {
    "automountServiceAccountToken!": None, "terminationGracePeriodSeconds": None, "shareProcessNamespace": None,
    "securityContext!": {"runAsNonRoot!": None, "runAsUser!": None, "fsGroup!": None, "fsGroupChangePolicy": None,
                         "seccompProfile!": {"type!": None}},
    "tolerations": [{"key!": None, "operator!": None, "effect!": None}],
    "containers!": [CONTAINER],
    "volumes": [{"name!": None, "persistentVolumeClaim": {"claimName!": None},
                 "emptyDir": {"medium": None, "sizeLimit": None}}],
}  # fmt: skip
SELECTOR = {"matchLabels!": ANY}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "Namespace": ("v1", {}),
    "PersistentVolumeClaim": ("v1", {"spec!": {
        "accessModes!": [None], "resources!": {"requests!": {"storage!": None}}}}),
    "Service": ("v1", {"spec!": {"selector!": ANY, "ports!": [{"name!": None, "port!": None}]}}),
    "NetworkPolicy": ("networking.k8s.io/v1", {"spec!": {
        "podSelector!": {"matchLabels": ANY}, "policyTypes!": [None],
        "ingress!": [{"from!": [{"podSelector": {"matchLabels": ANY}, "namespaceSelector": {"matchLabels": ANY}}]}]}}),
    "Deployment": ("apps/v1", {"spec!": {
        "replicas!": None, "strategy!": {"type!": None}, "selector!": SELECTOR,
        "template!": {"metadata!": META, "spec!": POD}}}),
    "RayCluster": ("ray.io/v1", {"spec!": {
        "rayVersion!": None, "authOptions!": {"mode!": None, "secretName!": None},
        "gcsFaultToleranceOptions!": {"redisAddress!": None, "redisPassword!": SECRET_KEY},
        "headGroupSpec!": {"rayStartParams!": ANY, "template!": {"spec!": POD}},
        "workerGroupSpecs!": [{"groupName!": None, "replicas!": None, "minReplicas!": None, "maxReplicas!": None,
                               "rayStartParams!": ANY, "template!": {"spec!": POD}}]}}),
    "RayJob": ("ray.io/v1", {"spec!": {
        "submissionMode!": None, "clusterSelector!": {"ray.io/cluster!": None}, "entrypoint!": None,
        "entrypointNumCpus!": None, "ttlSecondsAfterFinished!": None}}),
    "Kustomization": ("kustomize.config.k8s.io/v1beta1", {
        "namespace!": None, "resources!": [None], "images!": [{"name!": None, "newName!": None, "newTag!": None}]}),
}  # fmt: skip


def wrong(value: Any, shape: Any, where: str = "") -> Iterator[str]:
    """What of ``value`` is not as ``shape`` says."""
    if shape is None:
        if isinstance(value, dict | list):
            yield f"{where} is no plain value"
    elif isinstance(shape, list):
        if not isinstance(value, list) or not value:
            yield f"{where} is no list"
            return
        for index, entry in enumerate(value):
            yield from wrong(entry, shape[0], f"{where}[{index}]")
    elif not isinstance(value, dict):
        yield f"{where} is no mapping"
    else:
        known = {key.removesuffix("!"): inner for key, inner in shape.items()}
        yield from (f"{where}.{key[:-1]} is missing" for key in shape if key.endswith("!") and key[:-1] not in value)
        for key, inner in value.items():
            if key not in known and "*" not in known:
                yield f"{where}.{key} is not known"
            else:
                yield from wrong(inner, known.get(key, known.get("*")), f"{where}.{key}")


def problems(document: dict[str, Any]) -> list[str]:
    version, shape = KINDS[document["kind"]]
    whole = {"apiVersion!": None, "kind!": None, "metadata": META} | shape
    found = list(wrong(document, whole, document["kind"]))
    return found if document["apiVersion"] == version else [*found, f"{document['kind']} is of {version}"]


def read(*names: str) -> list[dict[str, Any]]:
    paths = [FOLDER / name for name in names] if names else sorted(FOLDER.glob("*.yaml"))
    return [document for path in paths for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))]


DOCUMENTS = read()


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [document for document in DOCUMENTS if document["kind"] == kind]


def pods() -> dict[str, dict[str, Any]]:
    """Name -> what a pod is made of."""
    cluster = of_kind("RayCluster")[0]["spec"]
    found = {"head": cluster["headGroupSpec"]["template"]["spec"]}
    found |= {group["groupName"]: group["template"]["spec"] for group in cluster["workerGroupSpecs"]}
    return found | {d["metadata"]["name"]: d["spec"]["template"]["spec"] for d in of_kind("Deployment")}


def values_of(tree: Any, key: str) -> Iterator[Any]:
    if isinstance(tree, dict):
        yield from (value for name, value in tree.items() if name == key)
        tree = list(tree.values())
    if isinstance(tree, list):
        for entry in tree:
            yield from values_of(entry, key)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: f"{d['kind']}-{d.get('metadata', {}).get('name', '')}")
def test_every_key_is_known_and_every_needed_one_there(document: dict[str, Any]) -> None:
    assert problems(document) == []


def test_a_misspelt_or_missing_key_is_found() -> None:
    service = of_kind("Service")[0]
    spec = dict(service["spec"])
    assert problems(service | {"spec": spec | {"selecter": {}}}) == ["Service.spec.selecter is not known"]
    del spec["ports"]
    assert problems(service | {"spec": spec}) == ["Service.spec.ports is missing"]
    assert problems(service | {"apiVersion": "v2"}) == ["Service is of v1"]


@pytest.mark.parametrize(("name", "pod"), pods().items())
def test_pods_are_unprivileged_and_mount_what_they_have(name: str, pod: dict[str, Any]) -> None:
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["automountServiceAccountToken"] is False
    for container in pod["containers"]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
        mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
        assert mounted <= {volume["name"] for volume in pod["volumes"]}


def test_claims_and_services_lead_to_something() -> None:
    claims = {document["metadata"]["name"] for document in of_kind("PersistentVolumeClaim")}
    assert set(values_of(DOCUMENTS, "claimName")) == claims
    labels = [document["spec"]["template"]["metadata"]["labels"] for document in of_kind("Deployment")]
    for document in of_kind("Deployment"):
        assert (
            document["spec"]["selector"]["matchLabels"].items() <= labels[of_kind("Deployment").index(document)].items()
        )
    for service in of_kind("Service"):
        assert any(service["spec"]["selector"].items() <= label.items() for label in labels)
    hosts = {service["metadata"]["name"] for service in of_kind("Service")} | {"kexue-head-svc"}
    text = yaml.safe_dump(read("prefect.yaml", "raycluster.yaml"))
    assert all(f"{host}:" in text for host in hosts)


def test_secrets_are_named_and_never_written() -> None:
    assert of_kind("Secret") == []
    used = {(key["name"], key["key"]) for key in values_of(DOCUMENTS, "secretKeyRef")}
    assert used == {("kexue", "auth_token"), ("kexue", "redis_password")}
    assert of_kind("RayCluster")[0]["spec"]["authOptions"] == {"mode": "token", "secretName": "kexue"}
    secret_like = [
        entry for env in values_of(DOCUMENTS, "env") for entry in env
        if any(word in entry["name"] for word in ("TOKEN", "PASSWORD", "KEY")) and "value" in entry
    ]  # fmt: skip
    assert secret_like == []


def test_no_service_is_open_to_the_outside() -> None:
    assert all("type" not in service["spec"] for service in of_kind("Service"))  # ClusterIP
    policy = of_kind("NetworkPolicy")[0]["spec"]
    assert policy["podSelector"] == {}
    assert all("podSelector" in peer for rule in policy["ingress"] for peer in rule["from"])


def test_the_cluster_has_gpu_and_cpu_nodes_and_a_head_that_survives() -> None:
    cluster = of_kind("RayCluster")[0]["spec"]
    gpus = {
        group["groupName"]: group["template"]["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu", "0")
        for group in cluster["workerGroupSpecs"]
    }
    assert gpus == {"data": "0", "train": "8"}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    redis = next(s for s in of_kind("Service") if s["metadata"]["name"] == "kexue-redis")
    assert cluster["gcsFaultToleranceOptions"]["redisAddress"] == f"kexue-redis:{redis['spec']['ports'][0]['port']}"


def test_drivers_find_their_node_of_ray_or_the_port_for_those_without_one() -> None:
    """Ray looks for the node among the processes it sees."""
    beside = [pod for pod in pods().values() if {c["name"] for c in pod["containers"]} == {"worker", "ray"}]
    assert [pod["shareProcessNamespace"] for pod in beside] == [True]
    ports = pods()["head"]["containers"][0]["ports"]
    assert {"name": "client", "containerPort": 10001} in ports


def test_the_machines_are_marked_as_the_settings_expect() -> None:
    groups = {group["groupName"]: group for group in of_kind("RayCluster")[0]["spec"]["workerGroupSpecs"]}
    marks = {name: json.loads(json.loads(group["rayStartParams"]["resources"])) for name, group in groups.items()}
    settings = ExecutionConfig()
    assert marks == {"data": {settings.data_resource: 1}, "train": {settings.train_resource: 1}}


def test_the_ray_version_is_the_pinned_one() -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert of_kind("RayCluster")[0]["spec"]["rayVersion"] == pins["ray"]


def test_the_job_runs_on_the_cluster_and_names_a_configuration() -> None:
    job = of_kind("RayJob")[0]["spec"]
    assert job["clusterSelector"]["ray.io/cluster"] == of_kind("RayCluster")[0]["metadata"]["name"]
    words = job["entrypoint"].split()
    assert words[:2] == ["kexue", "pipeline"]
    assert (ROOT / Path(words[words.index("--config") + 1]).relative_to("/app")).exists()


def test_kustomize_takes_every_file_but_the_job() -> None:
    listed = set(read("kustomization.yaml")[0]["resources"])
    assert listed == {path.name for path in FOLDER.glob("*.yaml")} - {"kustomization.yaml", "rayjob.yaml"}
    images = {container["image"] for pod in pods().values() for container in pod["containers"]}
    assert images == {"kexue_train", "redis:7.4.0"}
