"""Tiger under DeepSpeed's ZeRO 1, 2 and 3 makes the steps of one plain process, on 1, 2 and 3 ranks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from kexue_train.foundation.errors import ConfigError
from kexue_train.train.config import TrainConfig
from kexue_train.train.engine import make_deepspeed_config
from kexue_train.train.phases import plan_phases
from kexue_train.train.zero_partitions import refuse_unsupported
from tests.train.count_sent import planned_bytes, sent_bytes, start_ranks, wait_for
from tests.train.zero_net import CASES, COUNTED, OPTIONS, make_objective, train, train_plainly

Tensors = dict[str, Tensor]
RANKS, COUNTING_RANKS = (1, 2, 3), 4
FP32 = 1e-6
"""Sums of fp32 in another order; a step is 1e-3 and more."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of all processes."""
    pytest.importorskip("deepspeed")
    folder = tmp_path_factory.mktemp("zero")
    with_counts = start_ranks(COUNTING_RANKS, folder, "counts")
    wait_for([process for ranks in RANKS for process in start_ranks(ranks, folder)] + with_counts)
    return folder


@pytest.fixture(scope="module")
def plain() -> Tensors:
    """What plain Tiger makes of the same data."""
    return train_plainly()


def differences(result: Tensors, expected: Tensors) -> Tensor:
    """Of all weights and moments; the frozen layer has no moment."""
    assert result.keys() == expected.keys()
    return torch.cat([(result[name] - value).abs().flatten() for name, value in expected.items()])


@pytest.mark.slow
@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_every_element_lies_once_where_the_partitions_say(folder, ranks, stage):
    found = [load_file(folder / f"{ranks} numbers {stage} {rank}.safetensors") for rank in range(ranks)]
    assert all(own.pop("flats") > 1 for own in found)
    for own in found:
        for key in [key for key in own if key.endswith("/numbers")]:
            tensor = key.removesuffix("/numbers")
            assert torch.equal(own[f"{tensor}/values"], own[key])
            torch.testing.assert_close(own[f"{tensor}/gradients"], own[key] * (ranks + 1) / 2)  # mean of 1, 2, ...
    numbers = torch.cat([own[key] for own in found for key in own if key.endswith("/numbers")])
    sizes = [param.numel() for param in make_objective().model.parameters() if param.requires_grad]
    assert len(numbers) == len(set(numbers.tolist())) == sum(sizes)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [*RANKS[1:], COUNTING_RANKS])
@pytest.mark.parametrize("name", COUNTED)
def test_ranks_send_what_the_plan_says(folder, ranks, name):
    """With eight: ``python -m tests.train.count_sent 8``."""
    for rank in range(ranks):
        sent = sent_bytes(folder, rank, ranks)[name]
        assert all(least <= sent[kind] <= most for kind, (least, most) in planned_bytes(name, ranks).items())


ON_A_CPU_ONLY = {"whole_tensors.py: fold_tensor_", "whole_tensors.py: move_tensor_"}
"""Fake CUDA shows that these ask for nothing there."""
ON_HOSTS = {"ranks.py: any_over_ranks"}
"""What hosts tell each other lies on no device."""


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_step_asks_the_device_for_nothing(folder, stage, rank):
    places = json.loads((folder / f"asked-{rank}.json").read_text())[str(stage)]
    assert set(places) >= ON_A_CPU_ONLY  # so whoever asks is found
    # At stage 3 DeepSpeed looks at the norm of the gradients of a step, and has no switch for that.
    of_deepspeed = ["utils.py: is_invalid_grad_norm"] if stage == 3 else []
    assert [place for place in places if place not in ON_A_CPU_ONLY | ON_HOSTS] == of_deepspeed


@pytest.mark.slow
@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("name", [name for name in CASES if name.startswith(("momentum", "gradient"))])
def test_weights_and_momentum_are_those_of_one_plain_process(folder, plain, ranks, name):
    assert differences(load_file(folder / f"{ranks} {name}.safetensors"), plain).max() < FP32


@pytest.mark.slow
@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_bf16_products_with_fp32_weights_make_the_same_steps(folder, ranks, stage):
    expected = train_plainly(parts=ranks, autocast=torch.bfloat16)
    off = differences(load_file(folder / f"{ranks} bf16-stage-{stage}.safetensors"), expected) > FP32
    # The last bit of a weight in fp32 can be the last one in bf16, and that the sign of a small gradient.
    assert off.float().mean() < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_bad_element_on_one_rank_spoils_its_whole_tensor_and_no_other(folder, ranks, stage):
    result = load_file(folder / f"{ranks} spoiled-stage-{stage}.safetensors")
    assert differences(result, train_plainly(parts=2, spoiled=1)).max() < FP32


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS)
def test_options_do_what_they_do_in_plain_torch(folder, tmp_path, option):
    expected = train(replace(OPTIONS[option], stage=0, engine="torch"), tmp_path)
    assert differences(load_file(folder / f"{option}.safetensors"), expected).max() < FP32


@pytest.mark.slow
@pytest.mark.parametrize("change", ["from 1 to 3", "from 3 to 2", "from 0 to 1"])
def test_training_goes_on_at_another_stage(folder, plain, change):
    assert differences(load_file(folder / f"{change}.safetensors"), plain).max() < FP32


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("zero_optimization.offload_optimizer", {"device": "cpu"}),
        ("zero_optimization.offload_optimizer", {"device": "nvme", "nvme_path": "/somewhere"}),
        ("zero_optimization.offload_param", {"device": "cpu"}),
        ("zero_optimization.zenflow", {"topk_ratio": 0.1}),
        ("zero_optimization.zero_hpz_partition_size", 2),
        ("zero_optimization.zero_quantized_nontrainable_weights", True),
        ("fp16", {"enabled": True}),
        ("bf16", {"enabled": True}),
        ("gradient_clipping", 1.0),
    ],
)
def test_what_cannot_be_had_is_refused_by_name(key, value):
    config = TrainConfig(steps=1, compute={"zero_stage": 3})
    settings = make_deepspeed_config(config, plan_phases(config, [128], [32])[0])
    refuse_unsupported(settings)
    *path, last = key.split(".")
    (settings[path[0]] if path else settings)[last] = value
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
        refuse_unsupported(settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"offload_optimizer": {"device": "none"}, "offload_param": None, "zero_hpz_partition_size": 1},
        {"zero_quantized_nontrainable_weights": False},
    ],
)
def test_what_is_switched_off_is_not_refused(settings):
    refuse_unsupported({"zero_optimization": settings, "fp16": {"enabled": False}, "gradient_clipping": 0.0})


@pytest.mark.parametrize("settings", [{"engine": "torch"}, {"recompute": "selective"}, {"compile": True}])
def test_settings_that_do_not_go_with_stage_3_are_refused(settings):
    with pytest.raises(ValueError, match="zero_stage"):
        TrainConfig(steps=1, compute={"zero_stage": 3, **settings})


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_deepspeed_does_not_wait_for_the_device_to_time_it(stage):
    timers = pytest.importorskip("deepspeed.utils.config")
    config = TrainConfig(steps=1, compute={"zero_stage": stage})
    settings = make_deepspeed_config(config, plan_phases(config, [128], [32])[0])
    assert not timers.get_timers_config(settings).enabled
