"""The manifests: only known keys, references that lead somewhere, nothing privileged, no secret, nothing open."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
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
PROBE = {
    "httpGet": {"path!": None, "port!": None}, "exec": {"command!": [None]}, "initialDelaySeconds": None,
    "periodSeconds!": None, "timeoutSeconds": None, "failureThreshold!": None,
}  # fmt: skip
CONTAINER = {
    "name!": None, "image!": None, "command": [None], "ports": [{"name!": None, "containerPort!": None}],
    "env": [{"name!": None, "value": None, "valueFrom": SECRET_KEY["valueFrom!"]}],
    "resources!": {"requests!": {"cpu!": None, "memory!": None},
                   "limits!": {"cpu": None, "memory!": None, "nvidia.com/gpu": None}},
    "readinessProbe": PROBE, "livenessProbe": PROBE,
    "securityContext!": {"allowPrivilegeEscalation!": None, "readOnlyRootFilesystem!": None,
                         "capabilities!": {"drop!": [None]}},
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
PEER = {"podSelector": {"matchLabels": ANY}, "namespaceSelector": {"matchLabels": ANY}}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "Namespace": ("v1", {}),
    "PersistentVolumeClaim": ("v1", {"spec!": {
        "accessModes!": [None], "resources!": {"requests!": {"storage!": None}}}}),
    "Service": ("v1", {"spec!": {"selector!": ANY, "ports!": [{"name!": None, "port!": None}]}}),
    "NetworkPolicy": ("networking.k8s.io/v1", {"spec!": {
        "podSelector!": {"matchLabels": ANY}, "policyTypes!": [None],
        "ingress!": [{"from!": [PEER]}],
        "egress!": [{"to!": [PEER], "ports": [{"protocol!": None, "port!": None}]}]}}),
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
        assert container["securityContext"]["readOnlyRootFilesystem"]
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
    assert used == {("kexue", "auth_token"), ("kexue", "redis_password"), ("kexue", "prefect_auth")}
    commands = [(ROOT / page).read_text(encoding="utf-8") for page in ("cluster/README.md", "docs/cluster.md")]
    for text in commands:
        assert {key for _, key in used} == set(re.findall(r"--from-literal=(\w+)=", text))
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
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert all("podSelector" in peer for rule in policy["ingress"] for peer in rule["from"])


def test_pods_reach_each_other_and_the_names_of_the_cluster_and_nothing_outside() -> None:
    among_themselves, names = of_kind("NetworkPolicy")[0]["spec"]["egress"]
    assert among_themselves == {"to": [{"podSelector": {}}]}
    assert [set(peer) for peer in names["to"]] == [{"namespaceSelector", "podSelector"}]  # both hold, not one of them
    assert names["to"][0]["podSelector"]["matchLabels"] == {"k8s-app": "kube-dns"}
    assert {(port["protocol"], port["port"]) for port in names["ports"]} == {("UDP", 53), ("TCP", 53)}


def deployed() -> dict[str, dict[str, Any]]:
    """The containers that no operator looks after, by name."""
    found = [d["spec"]["template"]["spec"]["containers"] for d in of_kind("Deployment")]
    return {container["name"]: container for containers in found for container in containers}


@pytest.mark.parametrize(("name", "container"), deployed().items())
def test_kubernetes_can_tell_whether_a_container_works(name: str, container: dict[str, Any]) -> None:
    ports = {port["name"] for port in container.get("ports", [])}
    probes = [container[kind] for kind in ("readinessProbe", "livenessProbe") if kind in container]
    assert len(probes) == (1 if name == "ray" else 2)  # "ray start --block" ends by itself
    for probe in probes:
        assert len(probe.keys() & {"httpGet", "exec"}) == 1
        if "httpGet" in probe:
            assert probe["httpGet"]["port"] in ports


def test_probes_of_prefect_ask_what_answers_without_a_password() -> None:
    """PREFECT_SERVER_API_AUTH_STRING lets these two paths alone."""
    server, worker = deployed()["server"], deployed()["worker"]
    assert server["readinessProbe"]["httpGet"]["path"] == "/api/ready"
    assert server["livenessProbe"]["httpGet"]["path"] == "/api/health"
    assert "--with-healthcheck" in worker["command"]
    assert {"name": "PREFECT_WORKER_WEBSERVER_PORT", "value": str(worker["ports"][0]["containerPort"])} in worker["env"]


def test_the_prefect_server_asks_for_a_password_and_its_worker_has_it() -> None:
    def key_of(container: str, name: str) -> str:
        (entry,) = (entry for entry in deployed()[container]["env"] if entry["name"] == name)
        return str(entry["valueFrom"]["secretKeyRef"]["key"])

    assert key_of("server", "PREFECT_SERVER_API_AUTH_STRING") == "prefect_auth"
    assert key_of("worker", "PREFECT_API_AUTH_STRING") == "prefect_auth"


@pytest.mark.parametrize(("name", "pod"), pods().items())
def test_what_programs_write_to_is_mounted_since_the_image_is_read_only(name: str, pod: dict[str, Any]) -> None:
    for container in pod["containers"]:
        mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounted >= ({"/data"} if container["name"] == "redis" else {"/tmp", "/home/kexue"})


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


REGISTRY = """
import hashlib, os, sys
assert sys.argv[1:-1] == ["buildx", "imagetools", "inspect", "--format", "{{.Manifest.Digest}}"]
image = sys.argv[-1]
print("" if image == os.environ.get("FAKE_MISSING") else "sha256:" + hashlib.sha256(image.encode()).hexdigest())
"""


@pytest.mark.parametrize("missing", [None, "redis:7.4.0"])
def test_images_are_pinned_by_the_digests_that_the_registry_names(tmp_path: Path, missing: str | None) -> None:
    """All of them or none, and as often as one likes."""
    shutil.copytree(ROOT / "cluster", tmp_path / "cluster")
    (tmp_path / "docker").write_text(f"#!{sys.executable}{REGISTRY}")
    (tmp_path / "docker").chmod(0o755)
    file = tmp_path / "cluster/kubernetes/kustomization.yaml"
    before = file.read_text()
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "FAKE_MISSING": missing or ""}
    for _ in range(2):
        done = subprocess.run(
            [str(tmp_path / "cluster/image/pin.sh"), "registry.example:5000/team/kexue_train:cuda"],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
    if missing:
        assert done.returncode != 0
        assert "redis:7.4.0: the registry names no digest" in done.stderr
        assert file.read_text() == before
        return
    images = {image["name"]: image for image in yaml.safe_load(file.read_text())["images"]}
    assert images.keys() == {"kexue_train", "redis"}
    assert images["kexue_train"]["newName"] == "registry.example:5000/team/kexue_train"
    assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", image["digest"]) for image in images.values())
    (redis,) = (pod["containers"][0]["image"] for pod in pods().values() if pod["containers"][0]["name"] == "redis")
    assert redis in file.read_text()  # the one that was asked for
