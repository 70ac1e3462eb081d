"""Deployments with a real server, worker and webhook: run, read back, scheduled, cancelled, killed, gone on with."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.flows.prefect_server import PrefectServer, wait_for
from tests.flows.test_pretrain_flow import CONFIG, STAGES, write_inputs

pytest.importorskip("prefect")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

ENDLESS = ["train.steps=1000000", "train.checkpoints.every=1000000"]
WITH_TORCHRUN = "train.workers.launcher=torchrun"
STEPS = 4
LONG = 600.0
"""Seconds that nothing takes on a machine that does nothing else."""


@pytest.fixture(scope="module")
def hooks() -> Iterator[list[str]]:
    """What a webhook on this machine is told; its address is in the environment of the server fixture."""
    told: list[str] = []

    class Hook(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # http.server's name
            told.append(json.loads(self.rfile.read(int(self.headers["content-length"])))["text"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ["KEXUE_WEBHOOK_URL"] = f"http://127.0.0.1:{server.server_port}/"
    yield told
    del os.environ["KEXUE_WEBHOOK_URL"]
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with documents and the configuration ``tiny.yaml``, which trains in the flow's own process."""
    folder = tmp_path_factory.mktemp("deployments")
    write_inputs(folder)
    text = CONFIG.replace("documents.jsonl", str(folder / "documents*.jsonl")).replace("torchrun", "local")
    (folder / "tiny.yaml").write_text(text)
    yield folder
    for lock in folder.glob("*/.lock"):  # flows of tests that failed
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(int(lock.read_text() or 0))
            if "prefect.engine" in process.cmdline():
                process.kill()


@pytest.fixture(scope="module")
def prefect(tmp_path_factory: pytest.TempPathFactory, hooks: list[str]) -> Iterator[PrefectServer]:
    """A server that was set up, with everything deployed and a worker."""
    server = PrefectServer(tmp_path_factory.mktemp("prefect"))
    try:
        server.start_server()
        for command in (["python", "-m", "flows.set_up"], ["prefect", "deploy", "--all"]):
            done = server.run(*command)
            assert done.returncode == 0, done.stdout + done.stderr
        server.start_worker()
        yield server
    finally:
        server.stop_all()


@pytest.fixture(scope="module")
def finished(prefect: PrefectServer, workplace: Path) -> str:
    """The flow run that ``prefect deployment run --watch`` made of the run folder ``run``."""
    parameters = {"config_path": str(workplace / "tiny.yaml"), "run_dir": str(workplace / "run")}
    done = prefect.run(
        "prefect", "deployment", "run", "pretrain-pipeline/demo", "--watch", "--watch-timeout", "800",
        "--params", json.dumps(parameters),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr + prefect.log("worker")
    runs = prefect.ask("flow_runs/filter", {"flow_runs": {"name": {"any_": ["run from tiny.yaml"]}}})
    return str(runs[0]["id"])


def parameters_of(workplace: Path, name: str, *overrides: str) -> dict[str, Any]:
    run_dir = str(workplace / name)
    return {"config_path": str(workplace / "tiny.yaml"), "run_dir": run_dir, "overrides": list(overrides)}


def steps_of(run: Path) -> list[int]:
    metrics = run / "pretrain" / "metrics.jsonl"
    lines = [line for line in metrics.read_text().splitlines() if '"train"' in line] if metrics.exists() else []
    return [json.loads(line)["step"] for line in lines]


def holder_of(run: Path) -> psutil.Process:
    """The process of the flow that works in ``run``, which trains by now."""
    wait_for(lambda: steps_of(run)[2:] or None, LONG, "training")
    return psutil.Process(int((run / ".lock").read_text()))


def test_every_deployment_of_the_file_is_there_and_describes_its_parameters(prefect: PrefectServer) -> None:
    wanted = yaml.safe_load((Path(__file__).parents[2] / "prefect.yaml").read_text())["deployments"]
    found = {made["name"]: made for made in prefect.ask("deployments/filter", {})}
    assert found.keys() == {deployment["name"] for deployment in wanted}
    schemas = [made["parameter_openapi_schema"] for made in found.values()]
    assert [p for schema in schemas for p in schema["properties"].values() if not p.get("description")] == []
    assert [schema["required"] for schema in schemas] == [["config_path"]] * len(found)
    assert not any(schedule["active"] for made in found.values() for schedule in made["schedules"])


def test_one_training_at_a_time_is_allowed(prefect: PrefectServer) -> None:
    assert prefect.ask("v2/concurrency_limits/tag:kexue-train")["limit"] == 1


def test_a_run_says_what_it_made(prefect: PrefectServer, workplace: Path, finished: str) -> None:
    state = prefect.state(finished)
    assert state["type"] == "COMPLETED"
    assert f"{workplace / 'run'}: 4 steps" in state["message"]
    assert "MLM loss" in state["message"]
    tasks = prefect.ask("task_runs/filter", {"flow_runs": {"id": {"any_": [finished]}}})
    assert {task["name"]: task["state"]["type"] for task in tasks} == dict.fromkeys(STAGES, "COMPLETED")
    assert "held out" in next(task["state"]["message"] for task in tasks if task["name"] == "samples")


def test_artifacts_of_a_run_are_read_back(prefect: PrefectServer, finished: str) -> None:
    artifacts = prefect.artifacts(finished)
    assert [stage for stage in STAGES if artifacts[f"{stage}-progress"] != 100.0] == []
    shuffle = {row[""]: row["shuffle"] for row in json.loads(artifacts["shuffle-summary"])}
    assert shuffle["rows"] == "150"
    assert len(shuffle["checksum of the rows"]) == 32
    assert shuffle["speed"].endswith("/s")
    assert json.loads(artifacts["train-metrics"])[-1]["step"] == str(STEPS)
    assert artifacts["report"].endswith("/run/report/index.html)")
    assert "tiny" in artifacts["run-summary"]


def test_the_webhook_hears_of_a_finished_evaluation(hooks: list[str], finished: str) -> None:
    wait_for(lambda: [text for text in hooks if text.startswith("tiny is evaluated\nMLM loss")] or None, LONG, "call")


def test_a_cancelled_training_saves_ends_all_its_processes_and_goes_on(prefect: PrefectServer, workplace: Path) -> None:
    run = workplace / "cancelled"
    flow_run = prefect.start_run(
        "pretrain-pipeline/demo", **parameters_of(workplace, run.name, *ENDLESS, WITH_TORCHRUN)
    )
    driver = holder_of(run)
    family = [driver, *driver.children(recursive=True)]
    assert len(family) >= 3  # torchrun and a worker beside it
    cancelled = prefect.run("prefect", "flow-run", "cancel", flow_run)
    assert cancelled.returncode == 0, cancelled.stdout + cancelled.stderr
    _, alive = psutil.wait_procs(family, timeout=LONG)
    assert alive == []
    assert prefect.end_of(flow_run)["type"] == "CANCELLED"
    saved = (run / "pretrain" / "checkpoints" / "latest").read_text()
    logs = prefect.ask("logs/filter", {"logs": {"flow_run_id": {"any_": [flow_run]}}, "limit": 200})
    assert any("Run again with the same parameters to resume" in log["message"] for log in logs)
    again = prefect.start_run("pretrain-pipeline/demo", **parameters_of(workplace, run.name, *ENDLESS))
    wait_for(lambda: "resumed from checkpoint " + saved.strip() in prefect.log("worker") or None, LONG, "resumption")
    os.kill(holder_of(run).pid, signal.SIGKILL)
    assert prefect.end_of(again)["type"] == "CRASHED"


def test_a_flow_killed_with_its_worker_is_gone_on_with_by_another(prefect: PrefectServer, workplace: Path) -> None:
    run = workplace / "killed"
    overrides = ["train.steps=150", "train.checkpoints.every=2"]
    prefect.start_run("pretrain-pipeline/demo", **parameters_of(workplace, run.name, *overrides))
    driver = holder_of(run)
    checkpoints = run / "pretrain" / "checkpoints"
    wait_for(lambda: [*checkpoints.glob("step-*")] or None, LONG, "checkpoint")
    prefect.stop("worker", signal.SIGKILL)
    driver.kill()
    kept = max(int(path.name[5:]) for path in checkpoints.glob("step-*"))
    prefect.start_worker()
    again = prefect.start_run("pretrain-pipeline/demo", **parameters_of(workplace, run.name, *overrides))
    assert prefect.end_of(again)["type"] == "COMPLETED"
    assert steps_of(run) == list(range(1, 151))
    assert kept < 150


def test_a_second_run_on_a_folder_is_refused_and_the_webhook_hears_it(
    prefect: PrefectServer, workplace: Path, hooks: list[str]
) -> None:
    run = workplace / "twice"
    first = prefect.start_run("pretrain-pipeline/demo", **parameters_of(workplace, run.name, *ENDLESS))
    driver = holder_of(run)
    try:
        second = prefect.start_run("pretrain-pipeline/demo", **parameters_of(workplace, run.name, *ENDLESS))
        state = prefect.end_of(second)
        assert state["type"] == "FAILED"
        assert f"process {driver.pid} is working in this run folder" in state["message"]
        wait_for(lambda: [text for text in hooks if f"process {driver.pid} is working" in text] or None, LONG, "call")
    finally:  # else it would train beside all tests to come
        driver.send_signal(signal.SIGTERM)
    assert prefect.end_of(first)["type"] == "CRASHED"


def test_a_configuration_that_the_worker_does_not_see_is_named_with_the_machine(
    prefect: PrefectServer, workplace: Path
) -> None:
    missing = workplace / "missing.yaml"
    state = prefect.end_of(prefect.start_run("pretrain/training", config_path=str(missing)))
    assert f"{missing}: no such configuration file on " in state["message"]


def test_an_unknown_parameter_is_refused_by_name(prefect: PrefectServer) -> None:
    command = ["prefect", "deployment", "run", "pretrain-pipeline/demo", "--param", "config_path=tiny.yaml"]
    done = prefect.run(*command, "--param", "stepz=1")
    said = done.stdout + done.stderr
    assert done.returncode == 1
    assert "'stepz'" in said
    assert "'overrides'" in said  # one of those that there are


def test_a_schedule_fires_and_without_new_files_ends_at_once(
    prefect: PrefectServer, workplace: Path, finished: str
) -> None:
    name, inputs = "refresh-corpus/nightly", {"inputs": [str(workplace / "documents*.jsonl")]}
    deployment = prefect.ask(f"deployments/name/{name}")["id"]
    parameters = parameters_of(workplace, "run") | inputs
    prefect.ask(f"deployments/{deployment}", {"parameters": parameters}, method="PATCH")
    prefect.ask(
        f"deployments/{deployment}/schedules", [{"schedule": {"interval": 20.0}, "active": True}], method="POST"
    )
    query = {"deployments": {"id": {"any_": [deployment]}}, "flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
    runs = wait_for(lambda: prefect.ask("flow_runs/filter", query) or None, LONG, "scheduled run")
    assert runs[0]["auto_scheduled"]
    assert runs[0]["state"]["message"].endswith("no new files, nothing to do")
    for schedule in prefect.ask(f"deployments/{deployment}/schedules"):
        prefect.ask(f"deployments/{deployment}/schedules/{schedule['id']}", method="DELETE")


def test_new_files_are_trained_on(prefect: PrefectServer, workplace: Path, finished: str) -> None:
    folder = workplace / "more"
    folder.mkdir()
    write_inputs(folder)
    state = prefect.end_of(
        prefect.start_run("refresh-corpus/nightly", **parameters_of(workplace, "run"), inputs=[str(folder / "*.jsonl")])
    )
    assert state["type"] == "COMPLETED", state["message"]
    assert f"{workplace / 'run' / 'generations' / '2'}: 150 documents" in state["message"]


def test_a_new_checkpoint_is_evaluated(prefect: PrefectServer, workplace: Path, finished: str) -> None:
    results = workplace / "run" / "evaluations"
    overrides = ["train.checkpoints.every=2", "train.checkpoints.keep=9", "optimizer.lr=0.002"]  # another training
    state = prefect.end_of(prefect.start_run("pretrain/training", **parameters_of(workplace, "run", *overrides)))
    assert state["type"] == "COMPLETED", state["message"]
    wait_for(lambda: [*results.glob("step-*/mlm.json")] or None, LONG, "evaluation")


def test_a_server_that_is_away_is_named_within_seconds(tmp_path: Path, prefect: PrefectServer) -> None:
    write_inputs(tmp_path)
    address = "http://127.0.0.1:9/api"
    command = ["env", f"PREFECT_API_URL={address}", "python", "-m", "flows.pretrain_pipeline", "tiny.yaml"]
    done = prefect.run(*command, cwd=tmp_path)
    assert done.returncode == 2
    assert f"error: the Prefect server at {address} does not answer" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()
