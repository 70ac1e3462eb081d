"""The ``train`` section, and what of it makes a training another one."""

from __future__ import annotations

import pytest

from kexue_train.foundation.errors import ArtifactError, ConfigError
from kexue_train.train.config import MaskingConfig, TrainConfig
from kexue_train.train.distributed import choose_device
from kexue_train.train.job import JobConfig, TrainDir, prepare, read_samples
from tests.train.tiny_training import make_config


def test_batch_sizes_that_do_not_multiply_out_are_named_with_the_nearest_that_do():
    with pytest.raises(ConfigError) as error:
        make_config(global_batch_size=50, micro_batch_size=4, num_workers=3)
    for text in ("global_batch_size=50", "micro_batch_size=4", "num_workers=3", "48 or 60"):
        assert text in str(error.value)


def test_a_batch_smaller_than_one_micro_batch_has_one_nearest():
    with pytest.raises(ValueError, match=r"take global_batch_size=12,"):
        TrainConfig(steps=1, global_batch_size=5, micro_batch_size=4, num_workers=3)


def test_masking_chances_sum_to_at_most_one():
    assert MaskingConfig().total == pytest.approx(0.15)
    with pytest.raises(ValueError, match=r"sum to 1\.2"):
        MaskingConfig(mask_probability=0.9, keep_probability=0.2, random_probability=0.1)
    assert MaskingConfig(mask_probability=0.6, keep_probability=0.3, random_probability=0.1).total == pytest.approx(1)


@pytest.mark.parametrize("name", ["mask_probability", "keep_probability", "random_probability"])
@pytest.mark.parametrize("share", [-0.01, 1.01])
def test_each_masking_chance_is_a_probability(name, share):
    with pytest.raises(ValueError, match=name):
        MaskingConfig(**{name: share})


def test_checkpoints_kept_for_ever_must_be_saved_at_all():
    with pytest.raises(ValueError, match=r"keep_every=750 is not a multiple of checkpoint_every=500"):
        TrainConfig(steps=1, keep_every=750)
    assert TrainConfig(steps=1, keep_every=1500).keep_every == 1500


@pytest.mark.parametrize("mirror", ["bucket/run", "/mnt/backup", "s3:/bucket", ""])
def test_a_mirror_is_a_uri(mirror):
    with pytest.raises(ValueError, match=r"must be scheme://\.\.\., such as s3://bucket/run-1"):
        TrainConfig(steps=1, mirror=mirror)


def test_masking_nothing_is_refused():
    with pytest.raises(ValueError, match="sum to 0"):
        MaskingConfig(mask_probability=0.0, keep_probability=0.0, random_probability=0.0)


@pytest.mark.parametrize(
    "change",
    [
        {"micro_batch_size": 2}, {"num_workers": 2}, {"num_loader_workers": 2}, {"launcher": "ray"},
        {"engine": "deepspeed"}, {"recompute": "full"}, {"compile": True},
        {"loggers": []}, {"profile": {}}, {"log_every": 9}, {"validate_every": 9}, {"checkpoint_every": 9},
        {"keep_checkpoints": 9}, {"keep_every": 4}, {"mirror": "s3://bucket/run"},
        {"max_restarts": 9}, {"threads_per_worker": 2}, {"device": "auto"},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_how_a_result_is_reached_is_not_part_of_it(change):
    assert make_config(**change).recipe("samples") == make_config().recipe("samples")


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"lr": 1e-3}, "optimizer.lr"), ({"steps": 9}, "train.steps"), ({"precision": "bf16"}, "train.precision"),
        ({"global_batch_size": 16}, "train.global_batch_size"), ({"nsp_weight": 0.5}, "train.nsp_weight"),
        ({"loss_unit": "prior"}, "train.loss_unit"),
        ({"masking": {"mask_probability": 0.2}}, "train.masking.mask_probability"),
        ({"model": {"hidden_size": 64}}, "model.hidden_size"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_weights_depend_on_makes_another_recipe(change, key):
    assert f"{key} changed" in make_config(**change).recipe("samples").difference(make_config().recipe("samples"))


def test_recompute_takes_a_name_or_every_how_many_layers():
    assert make_config(recompute="selective").train.recompute == "selective"
    assert make_config(recompute={"every": 3}).train.recompute.every == 3
    for wrong in ("some", {"every": 0}, {"each": 2}):
        with pytest.raises(ConfigError, match=r"train\.recompute"):
            make_config(recompute=wrong)


def test_a_job_reads_only_its_sections(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("name: x\nmodel: {}\noptimizer: {lr: 2e-3}\ntrain: {steps: 5}\ncorpus: {whatever: 1}\n")
    config = JobConfig.load(file, ["train.steps=6"])
    assert (config.train.steps, config.optimizer.lr, config.seed) == (6, 2e-3, 0)


def test_rows_longer_than_the_model_takes_are_refused(samples):
    with pytest.raises(ConfigError, match=r"rows of 32 tokens, but model\.max_position_embeddings=16"):
        read_samples(samples, make_config({"max_position_embeddings": 16}))


def test_fewer_rows_than_one_step_takes_are_refused(samples):
    with pytest.raises(ArtifactError, match=r"rows of 32 tokens to train on are fewer than one step takes .*=100000"):
        read_samples(samples, make_config(global_batch_size=100_000))


def test_another_artifact_in_the_place_of_samples_is_refused_and_leaves_nothing(samples, tmp_path):
    with pytest.raises(ArtifactError, match="holds text_shards, not sample_shards"):
        prepare(make_config(), samples.parent / "shards", TrainDir(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_cuda_asked_for_and_absent_is_refused_and_not_missed_by_auto(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(
        ConfigError, match=r"train\.device=cuda, but torch sees no CUDA device here; set train\.device=cpu"
    ):
        choose_device("cuda")
    assert choose_device("auto").type == "cpu"
