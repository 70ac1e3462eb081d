"""Slurm's words for ranks, in torchrun's."""

from __future__ import annotations

import pytest

from kexue_train.train.distributed import first_node, slurm_environment, tasks_of_node

_STEP = {
    "SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "2", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NTASKS": "32",
    "SLURM_STEP_NUM_TASKS": "8", "SLURM_JOB_NODELIST": "gpu[003-010]", "SLURM_STEP_NODELIST": "gpu[005,007-009]",
}  # fmt: skip


def test_a_task_of_srun_learns_its_rank_from_the_step_not_from_the_job():
    found = slurm_environment(_STEP)
    assert found.pop("MASTER_PORT").isdigit()
    assert found == {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "gpu005"}


@pytest.mark.parametrize(("node", "tasks"), [(0, 2), (2, 2), (3, 1), (4, 12), (5, 12)])
def test_a_task_learns_how_many_are_on_its_machine(node, tasks):
    assert tasks_of_node("2(x3),1,12(x2)", node) == tasks
    found = slurm_environment(_STEP | {"SLURM_STEP_TASKS_PER_NODE": "2(x3),1,12(x2)", "SLURM_NODEID": str(node)})
    assert found["LOCAL_WORLD_SIZE"] == str(tasks)


def test_all_tasks_of_a_step_know_the_same_port_and_other_jobs_others():
    ports = [int(slurm_environment(_STEP | {"SLURM_PROCID": str(rank)})["MASTER_PORT"]) for rank in range(8)]
    assert len(set(ports)) == 1
    assert 1024 < ports[0] < 2**16
    others = {slurm_environment(_STEP | {"SLURM_JOB_ID": str(job)})["MASTER_PORT"] for job in range(4700, 4800)}
    assert len(others) == 100


def test_what_the_user_sets_has_precedence():
    assert slurm_environment(_STEP | {"MASTER_PORT": "1234", "MASTER_ADDR": "ib0"})["MASTER_PORT"] == "1234"
    assert slurm_environment(_STEP | {"MASTER_ADDR": "ib0"})["MASTER_ADDR"] == "ib0"


@pytest.mark.parametrize(
    "environ",
    [{}, _STEP | {"RANK": "0"}, {name: value for name, value in _STEP.items() if name != "SLURM_STEP_ID"}],
    ids=["no Slurm", "torchrun inside of a step", "batch script"],
)
def test_without_a_task_of_srun_nothing_is_set(environ):
    assert slurm_environment(environ) == {}


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"), ("node1,node2", "node1"), ("node[1-4]", "node1"), ("node[03,07-09],login", "node03"),
        ("rack[2-3]node[01-16]", "rack2node01"), ("a[1-2].cluster,b", "a1.cluster"),
    ],
)  # fmt: skip
def test_the_first_node_of_a_list(nodes, first):
    assert first_node(nodes) == first
