"""What cannot be used is refused before anything trains, with every fault of every task in one message."""

from __future__ import annotations

import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from kexue_train.batches.mixed import MixedDataset
from kexue_train.foundation.errors import ArtifactError, ConfigError, EvaluationError
from kexue_train.train.job import TrainDir
from tests.supervised.tiny_tasks import open_mix, prepare, record_of, section, write_tasks
from tests.train.tiny_training import make_config, train_here


def refusal(folder, samples, out, **mix):
    with pytest.raises(EvaluationError) as error:
        prepare(section(folder, mix or dict.fromkeys(("sorted", "marked", "asked", "chosen"), 1.0)), samples, out)
    return str(error.value)


def test_the_faults_of_all_tasks_are_told_together(samples, tmp_path):
    marked, asked, chosen = record_of("marked", 3), record_of("asked", 2), record_of("chosen", 1)
    marked["entities"][0]["end"] = 1000
    asked["answers"] = [{"text": "nowhere", "start": 5000}]
    chosen["label"] = 9
    no_label = record_of("sorted", 4)
    del no_label["label"]
    changes = {"sorted": {4: no_label}, "marked": {3: marked}, "asked": {2: asked}, "chosen": {1: chosen}}
    said = refusal(write_tasks(tmp_path / "tasks", changes), samples, tmp_path / "out")
    for part in (
        "sorted-train.jsonl:5: no value 'label'",
        "marked-train.jsonl:4: the TIME at",
        "asked-train.jsonl:3: the answer at 5000 is not inside the text",
        "chosen-train.jsonl:2: 'label' is 9",
    ):
        assert part in said, said
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").rglob("*.arrow"))


def test_a_missing_file_of_one_task_does_not_hide_a_bad_record_of_another(samples, tmp_path):
    marked = record_of("marked", 0)
    marked["entities"][0]["end"] = 1000
    folder = write_tasks(tmp_path / "tasks", {"marked": {0: marked}})
    (folder / "sorted-train.jsonl").write_text("{not json\n")
    said = refusal(folder, samples, tmp_path / "out", sorted=1, marked=1)
    assert "sorted: " in said
    assert "not valid JSON" in said
    assert "marked-train.jsonl:1" in said


def test_many_faults_are_counted(samples, tmp_path):
    bad = {number: {**record_of("chosen", number), "label": -1} for number in range(20)}
    said = refusal(write_tasks(tmp_path / "tasks", {"chosen": bad}), samples, tmp_path / "out", chosen=1)
    assert said.count("'label' is -1") == 3
    assert "(and 17 more)" in said


def test_a_set_with_one_class_is_refused(samples, tmp_path):
    same = {number: {**record_of("sorted", number), "label": "yes"} for number in range(40)}
    said = refusal(write_tasks(tmp_path / "tasks", {"sorted": same}), samples, tmp_path / "out", sorted=1)
    assert "every record has the label 'yes'" in said


def test_a_label_that_only_the_development_set_has_is_refused(samples, tmp_path):
    known = {number: {**record_of("sorted", number), "label": ("no", "yes")[number % 2]} for number in range(40)}
    said = refusal(write_tasks(tmp_path / "tasks", {"sorted": known}), samples, tmp_path / "out", sorted=1)
    assert "the label 'maybe' is not known" in said


def test_answers_that_are_not_in_the_text_are_refused_and_counted(samples, tmp_path):
    # Sets mark answers that their texts lost by the start -1.
    lost = {n: {**record_of("asked", n), "answers": [{"text": "elsewhere", "start": (3, -1)[n % 2]}]} for n in range(5)}
    file = prepare(section(write_tasks(tmp_path / "tasks", {"asked": lost}), {"asked": 1}), samples, tmp_path / "out")
    (task,) = open_mix(file).tasks
    assert task.manifest.statistics["refused"] == {"questions whose answer is not in the text": 5}
    assert task.num_training_rows == 25


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mix": {"mlm": 1, "sorted": 0}}, "shares must be above 0, got sorted: 0"),
        ({"mix": {"mlm": 1, "sorted": -2}}, "shares must be above 0"),
        ({"mix": {}}, "the mix is empty"),
        ({"mix": {"a/b": 1}}, "names of tasks"),
        ({"steps": 3, "schedule": {"10": 1.0}}, "the learning rate would only ever rise"),
    ],
)
def test_a_section_that_cannot_be_meant_is_refused(tasks, changes, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        section(tasks, **{"mix": {"mlm": 1}, **changes})


def test_unknown_tasks_are_named_together(tasks, samples, tmp_path):
    with pytest.raises(ConfigError, match=r"no task 'ocnlli'.*no task 'tnewz'"):
        prepare(section(tasks, {"ocnlli": 1, "tnewz": 1, "sorted": 1}), samples, tmp_path)


def test_a_share_too_small_to_be_kept_is_refused(mix):
    root = mix.parent
    with pytest.raises(ConfigError, match="less than 1/10000"):
        MixedDataset({root / "rows" / "sorted": 0.00001, root / "rows" / "marked": 1.5})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"phases": [{"steps": 4, "seq_len": 32}, {"steps": 4, "seq_len": 32}], "steps": 8}, "leave the phases out"),
    ],
)
def test_what_cannot_train_on_tasks_is_refused(mix, tmp_path, changes, said):
    with pytest.raises(ConfigError, match=said):
        train_here(make_config(**changes), mix, tmp_path / "out")


def test_a_head_whose_size_changed_since_the_checkpoint_is_named(mix, tmp_path):
    config = make_config(steps=2)
    train_here(config, mix, tmp_path / "first")
    checkpoint = TrainDir(tmp_path / "first").checkpoints / "step-00000002"
    other = shutil.copytree(checkpoint, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    name = next(name for name in weights if name.endswith("sorted_head.weight"))
    save_file(weights | {name: torch.zeros(7, weights[name].shape[1])}, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(ArtifactError, match=r"task_heads.sorted_head.weight has shape \[7, 32\] there, \[3, 32\]"):
        train_here(make_config(steps=2, init_from=str(other)), mix, tmp_path / "second")
    train_here(make_config(steps=2, init_from=str(checkpoint)), mix, tmp_path / "third")  # the heads go on
