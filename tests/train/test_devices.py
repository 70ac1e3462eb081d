"""Which device a worker takes, and what it tells the others of it; CUDA devices are counted, not used."""

from __future__ import annotations

import os
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from kexue_train.executor.config import ExecutionConfig
from kexue_train.foundation.errors import ConfigError
from kexue_train.model.modeling_roformer_v2 import RoFormerV2Layer
from kexue_train.model.recompute import compile_layers
from kexue_train.optim.config import OptimizerConfig
from kexue_train.train import engine, loop, ray_launch
from kexue_train.train.config import check_optimizer_fits
from kexue_train.train.distributed import choose_device, local_world_size
from kexue_train.train.objective import PretrainingObjective
from tests.train.tiny_training import make_config, make_model, train_here

_LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SLURM_PROCID", "SLURM_GPUS_ON_NODE")


@pytest.fixture
def machine(monkeypatch):
    """``machine(devices, **environment)``: a worker there, of what its launcher has told it."""

    def make(devices: int, **environment: object) -> None:
        for name in (*_LAUNCHED, "TORCHELASTIC_RUN_ID"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: devices > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
        monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)

    return make


@pytest.mark.parametrize(
    ("devices", "environment", "index"),
    [
        (1, {}, 0),
        (8, {"LOCAL_RANK": 5, "WORLD_SIZE": 64, "LOCAL_WORLD_SIZE": 8}, 5),
        (8, {"LOCAL_RANK": 1, "WORLD_SIZE": 2}, 1),
        (1, {"LOCAL_RANK": 3, "LOCAL_WORLD_SIZE": 4, "SLURM_PROCID": 3, "SLURM_GPUS_ON_NODE": 4}, 0),
    ],
    ids=["alone", "one of eight", "without a local size", "Slurm shows one of four"],
)
@pytest.mark.parametrize("wanted", ["auto", "cuda"])
def test_every_worker_has_a_device_of_its_own(machine, devices, environment, index, wanted):
    machine(devices, **environment)
    assert choose_device(wanted) == torch.device("cuda", index)


@pytest.mark.parametrize(
    "environment",
    [
        {"LOCAL_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2},
        {"LOCAL_RANK": 1, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "TORCHELASTIC_RUN_ID": "x"},
        {"LOCAL_RANK": 1, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "SLURM_PROCID": 1, "SLURM_GPUS_ON_NODE": 1},
    ],
    ids=["first", "torchrun", "Slurm"],
)
def test_workers_that_would_share_a_device_take_the_cpu_or_are_refused(machine, environment, caplog):
    machine(1, **environment)
    assert choose_device("auto").type == "cpu"
    assert "2 workers of this machine share 1 CUDA device" in caplog.text
    with pytest.raises(ConfigError, match=r"2 workers .* share 1 CUDA device.*start 1 here"):
        choose_device("cuda")


def test_threads_are_those_of_the_machine_not_of_the_cluster(machine):
    machine(0, WORLD_SIZE=64, LOCAL_WORLD_SIZE=8)
    assert local_world_size() == 8
    machine(0, WORLD_SIZE=2)
    assert local_world_size() == 2
    machine(0)
    assert local_world_size() == 1


@pytest.mark.parametrize(
    ("device", "workers", "gpus", "to_come", "taken"),
    [
        ("auto", 2, 2, 0, True),
        ("auto", 2, 1, 0, False),
        ("auto", 2, 0, 0, False),
        ("auto", 2, 0, 8, True),
        ("cuda", 2, 0, 0, True),
        ("cpu", 2, 2, 0, False),
    ],
)
def test_ray_gives_out_gpus_if_there_is_one_for_each_worker(monkeypatch, caplog, device, workers, gpus, to_come, taken):
    nodes = [SimpleNamespace(node_id="1", gpus=gpus, cpus=8, has_custom_resource=False)] if gpus else []
    monkeypatch.setattr(ray_launch, "machines_with", lambda *_: nodes)
    monkeypatch.setattr(ray_launch, "_draining_nodes", tuple)
    monkeypatch.setattr(ray_launch, "_gpus_to_come", lambda: to_come)
    config = make_config(num_workers=workers, device=device)
    assert ray_launch._takes_gpus(config, ExecutionConfig(ray_address="10.0.0.1:6379")) is taken
    assert ("set train.device=cuda to wait for GPUs" in caplog.text) is (device == "auto" and not taken)


@pytest.mark.parametrize("index", [0, 3])
def test_deepspeed_takes_the_device_of_the_model_and_probes_nothing(monkeypatch, tmp_path, index):
    deepspeed = pytest.importorskip("deepspeed")
    monkeypatch.setattr("deepspeed.ops._probe_compatible_ops", lambda: pytest.fail("probed"))
    monkeypatch.delitem(vars(deepspeed.ops), "__compatible_ops__", raising=False)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    seen = []
    monkeypatch.setattr(deepspeed, "initialize", lambda **_: seen.append(os.environ["LOCAL_RANK"]) or (None,))
    parameter = SimpleNamespace(device=torch.device("cuda", index))
    engine.start_deepspeed(SimpleNamespace(parameters=lambda: iter([parameter])), None, {}, tmp_path)
    assert seen == [str(index)]
    assert not deepspeed.ops.__compatible_ops__


def test_the_optimizer_observes_tokens_where_the_model_is(monkeypatch):
    seen = {}

    class Optimizer:
        param_groups = ()

        def observe_tokens(self, *ids):
            seen["observed"] = ids

    class Engine:
        def micro_step(self, batch):
            seen["trained"] = batch

    names = ("input_ids", "prediction_labels", "sequence_ids")
    nothing = SimpleNamespace(
        before=lambda _: None, after=lambda _: None, beat=lambda _: None, start_step=lambda: None,
        add=lambda *_: None, waiting=nullcontext,
    )  # fmt: skip
    objective = nn.Identity()
    objective.weights = None
    setup = SimpleNamespace(
        config=make_config(), device=torch.device("meta"), optimizer=Optimizer(), engine=Engine(), norms=None,
        objective=objective, profiler=nothing,
    )  # fmt: skip
    monkeypatch.setattr(loop.dist, "get_rank", lambda: 0)
    monkeypatch.setattr(loop, "replace", lambda saved, **_: saved)
    state = SimpleNamespace(step=0, saved=SimpleNamespace(micro_step=0))
    phase = SimpleNamespace(accumulation_steps=1, micro_steps=lambda _: 1)
    data = SimpleNamespace(phase=phase, batches=iter([{name: torch.zeros(2, 3) for name in names}]))
    training = SimpleNamespace(setup=setup, state=state, guards=SimpleNamespace(watchdog=nothing), outputs=None)
    loop.run_step(training, data, nothing, loop.Due(False, False, log=False, validate=False))
    assert {tensor.device.type for tensor in seen["observed"]} == {"meta"}
    assert seen["observed"][0] is seen["trained"]["input_ids"]


@pytest.mark.parametrize(
    ("compute", "device", "said"),
    [
        ({"recompute": "selective"}, "cuda", r"selective without compute\.compile=true takes the host longer"),
        ({"compile": True, "cuda_graphs": True}, "cpu", r"cuda_graphs=true has no effect on a CPU"),
        ({"cuda_graphs": True}, "auto", r"replays compiled layers: set compile=true"),
    ],
)
def test_what_a_device_cannot_do_is_refused(compute, device, said):
    with pytest.raises(ConfigError, match=said):
        make_config(device=device, **compute)


def test_what_the_chosen_device_cannot_do_is_refused_when_it_is_chosen(samples, tmp_path):
    config = make_config(device="auto", compile=True, cuda_graphs=True)
    with pytest.raises(ConfigError, match=r"train\.compute\.cuda_graphs=true has no effect on a CPU.*device=auto"):
        train_here(config, samples, tmp_path / "out")


def test_graphs_are_asked_for_and_begun_with_every_forward(monkeypatch):
    asked, begun = [], []
    monkeypatch.setattr(RoFormerV2Layer, "compile", lambda _, **options: asked.append(options["options"]))
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: begun.append(1))
    model = make_model(128)[0]
    compile_layers(model.roformer, cuda_graphs=True)
    assert asked == [{"triton.cudagraphs": True}]
    with pytest.raises(KeyError):
        PretrainingObjective(model, (), has_graphs=True)({})
    assert begun == [1]


def test_graphs_and_gradients_that_wait_for_the_end_of_a_step_are_refused():
    train = make_config(device="cuda", compile=True, cuda_graphs=True).train
    with pytest.raises(ValueError, match=r"cuda_graphs=true goes with optimizer\.accumulate=momentum only"):
        check_optimizer_fits(OptimizerConfig(accumulate="gradient"), train)
    check_optimizer_fits(OptimizerConfig(), train)


@pytest.mark.filterwarnings("ignore")  # the compiler looks at every tensor's gradient
def test_more_shapes_than_programs_may_be_end_the_run():
    """A graph is made for each; torch would go on without, and slowly, if layers were not compiled as wholes."""
    torch._dynamo.reset()  # programs of tests before this one would count
    model = make_model(128)[0]
    compile_layers(model.roformer, backend="eager")
    rows = [torch.ones(number, 8, dtype=torch.int64) for number in (1, 2, 3)]
    with torch._dynamo.config.patch(cache_size_limit=2):  # pytest's monkeypatch would delete the entry at the end
        for ids in rows[:2]:
            model.roformer(ids)
        with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
            model.roformer(rows[2])
    torch._dynamo.reset()
