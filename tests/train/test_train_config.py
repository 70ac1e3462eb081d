"""The ``train`` section, and what of it makes a training another one."""

from __future__ import annotations

import json

import pytest

from kexue_train.foundation.errors import ArtifactError, ConfigError
from kexue_train.train.config import RENAMED_KEYS, MaskingConfig, ObjectiveConfig, TrainConfig
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
    with pytest.raises(ValueError, match=r"keep_every=750 is not a multiple of every=500"):
        TrainConfig(steps=1, checkpoints={"keep_every": 750})
    assert TrainConfig(steps=1, checkpoints={"keep_every": 1500}).checkpoints.keep_every == 1500


@pytest.mark.parametrize("mirror", ["bucket/run", "/mnt/backup", "s3:/bucket", ""])
def test_a_mirror_is_a_uri(mirror):
    with pytest.raises(ValueError, match=r"must be scheme://\.\.\., such as s3://bucket/run-1"):
        TrainConfig(steps=1, checkpoints={"mirror": mirror})


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


def test_only_the_objective_and_the_batches_of_a_step_are_part_of_a_result():
    result = make_config().train.settings_of_result()
    objective = set(ObjectiveConfig.model_fields) - {"weighting"}  # recorded only where it weighs something
    assert set(result) == {"steps", "global_batch_size", "precision"} | objective


def test_recorded_settings_are_those_that_version_0_1_wrote():
    masking = {"mask_probability": 0.2}
    given = {"precision": "bf16", "nsp_weight": 0.5, "loss_unit": "prior", "masking": masking, "residual_ramp_steps": 3}
    written = (  # by JobConfig.recipe of that version, for the same keys
        '"precision": "bf16", "masking": {"mask_probability": 0.2, "keep_probability": 0.015, '
        '"random_probability": 0.015}, "residual_ramp_steps": 3, "nsp_weight": 0.5, "loss_unit": "prior"'
    )
    settings = make_config(**given).train.settings_of_result()
    assert json.dumps(settings) == f'{{"steps": 8, "global_batch_size": 8, {written}}}'
    phases = [{"steps": 8, "seq_len": 32}, {"steps": 4, "seq_len": 64, "global_batch_size": 4, "micro_batch_size": 2}]
    settings = make_config(**given, steps=12, phases=phases).train.settings_of_result()
    assert json.dumps(settings) == (
        f'{{"steps": 12, {written}, "phases": [{{"steps": 8, "seq_len": 32, "global_batch_size": 8}}, '
        '{"steps": 4, "seq_len": 64, "global_batch_size": 4}]}'
    )


def test_every_key_without_a_section_is_accepted_in_files_overrides_and_calls(tmp_path, caplog):
    flat = {"launcher": "torchrun", "loggers": ["mlflow"], "masking": {"mask_probability": 0.2}, "checkpoint_every": 4,
            "keep_every": 8, "mirror": "file:///backup", "profile": {"steps": 2}, "zero_stage": 1}  # fmt: skip
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps({"model": {}, "optimizer": {}, "train": {"steps": 5, **flat}}), encoding="utf-8")
    overrides = [f"train.{key}={json.dumps(value)}" for key, value in flat.items()]
    in_file, in_overrides = JobConfig.load(file, []).train, JobConfig.load(file, overrides).train
    in_call = TrainConfig(steps=5, **flat)
    assert in_file == in_overrides == in_call == TrainConfig.parse({"steps": 5, **flat}, where="test")
    assert (in_call.workers.launcher, in_call.checkpoints.every, in_call.compute.zero_stage) == ("torchrun", 4, 1)
    assert in_call.objective.masking.mask_probability == 0.2
    assert "'train.checkpoint_every' is now 'train.checkpoints.every'" in caplog.text


@pytest.mark.parametrize("key", RENAMED_KEYS)
def test_a_renamed_key_leads_to_a_key_of_its_section(key):
    _, section, name = RENAMED_KEYS[key].split(".")
    assert name in TrainConfig.model_fields[section].annotation.model_fields


def test_overrides_win_over_the_file_whichever_name_either_has(tmp_path):
    file = tmp_path / "run.yaml"
    for given, override in [
        ("launcher: ray", "train.workers.launcher"),
        ("workers: {launcher: ray}", "train.launcher"),
    ]:
        file.write_text(f"model: {{}}\noptimizer: {{}}\ntrain:\n  steps: 5\n  {given}\n", encoding="utf-8")
        assert JobConfig.load(file, [f"{override}=torchrun"]).train.workers.launcher == "torchrun"
    file.write_text("model: {}\noptimizer: {}\ntrain: {steps: 5, masking: {mask_probability: 0.5}}\n", encoding="utf-8")
    masking = JobConfig.load(file, ["train.masking.keep_probability=0.25"]).train.objective.masking
    assert (masking.mask_probability, masking.keep_probability) == (0.5, 0.25)


def test_a_key_given_by_its_old_and_its_new_name_is_refused(tmp_path):
    both = {"steps": 5, "launcher": "ray", "workers": {"launcher": "ray"}}
    message = r"launcher' is the old name of '(train\.)?workers\.launcher', and both are given; remove"
    with pytest.raises(ValueError, match=message):
        TrainConfig(**both)
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps({"model": {}, "optimizer": {}, "train": both}), encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"run\.yaml: 'train\.{message}"):
        JobConfig.load(file, [])
    file.write_text("model: {}\noptimizer: {}\ntrain: {steps: 5}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        JobConfig.load(file, ["train.launcher=ray", "train.workers.launcher=ray"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("chekpoint_every: 5", "unknown key 'train.chekpoint_every', did you mean 'checkpoints.every'?"),
        ("lanucher: ray", "unknown key 'train.lanucher', did you mean 'workers.launcher'?"),
        ("workers: {lancher: ray}", "unknown key 'train.workers.lancher', did you mean 'launcher'?"),
        ("workers: {num_workers: 2}", "unknown key 'train.workers.num_workers', did you mean 'train.num_workers'?"),
        ("log_every: -1", "train.logging.log_every=-1: Input should be greater than 0"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_its_line_and_the_right_key(tmp_path, line, message):
    file = tmp_path / "run.yaml"
    file.write_text(f"model: {{}}\noptimizer: {{}}\ntrain:\n  steps: 5\n  {line}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        JobConfig.load(file, [])
    assert str(error.value) == f"{file}:5: {message}"


def test_recompute_takes_a_name_or_every_how_many_layers():
    assert make_config(recompute="selective").train.compute.recompute == "selective"
    assert make_config(recompute={"every": 3}).train.compute.recompute.every == 3
    for wrong in ("some", {"every": 0}, {"each": 2}):
        with pytest.raises(ConfigError, match=r"train\.compute\.recompute"):
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
