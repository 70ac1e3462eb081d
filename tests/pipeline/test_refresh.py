"""New files for a trained run: read once and alone, trained on beside old rows, nothing of the old made again."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from kexue_train.batches.dataset import SampleDataset
from kexue_train.foundation.artifacts import read_manifest
from kexue_train.foundation.errors import ArtifactError, ConfigError, CorpusError
from kexue_train.foundation.progress import SILENT
from kexue_train.foundation.run_dir import RunDir
from kexue_train.foundation.stage import Stage
from kexue_train.pipeline.refresh import Generation, find_arrivals, next_generation, plan_training
from kexue_train.pipeline.run import Run, open_run, run_stage
from kexue_train.pipeline.run_config import RunConfig
from kexue_train.pipeline.stages import EVALUATE, EXPORT, REPORT, SAMPLES, SHUFFLE, TRAIN, stages_of
from kexue_train.train.stage import last_checkpoint

pytestmark = pytest.mark.slow

BATCH = 4
CONFIG: dict[str, Any] = {
    "name": "tiny",
    "shuffle": {"shards": 2, "memory": "256MB"},
    "tokenizer": {"vocab_size": 96},
    "samples": {"seq_len": 32, "heldout_fraction": 0.05},
    "model": {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64,
              "max_position_embeddings": 32},
    "optimizer": {"schedule": {"2": 1.0}},
    "train": {"steps": 4, "global_batch_size": BATCH, "micro_batch_size": 4, "device": "cpu",
              "compute": {"engine": "torch"}, "workers": {"launcher": "local", "threads_per_worker": 1},
              "logging": {"loggers": []}},
    "execution": {"tasks": "local", "num_workers": 1},
}  # fmt: skip
WORDS = ["river", "stone", "light", "under", "winter", "garden", "seven", "paper", "open", "letter", "old", "sea"]


def write(path: Path, numbers: range) -> None:
    """A document for each number, which is its first word."""
    with path.open("w") as file:
        for n in numbers:
            sentences = [" ".join(WORDS[(n * k + j) % 12] for j in range(5 + k)) + "." for k in range(1, 6)]
            file.write(json.dumps({"text": f"{n} " + " ".join(sentences)}) + "\n")


def config_of(folder: Path, **train: Any) -> RunConfig:
    values = CONFIG | {"corpus": {"inputs": [str(folder / "*.jsonl")]}, "train": CONFIG["train"] | train}
    return RunConfig.parse(values, where="test")


def work(run: Run, *stages: Stage[RunConfig]) -> None:
    for stage in stages:
        run_stage(stage, run, SILENT)


def make_all(config: RunConfig, root: Path) -> None:
    with RunDir(root).lock():
        work(open_run(config, root), *stages_of(config))


def complete(generation: Generation) -> Generation:
    work(generation.run, SHUFFLE, SAMPLES)
    planned = plan_training(generation)
    run_stage(TRAIN, planned.run, SILENT, inputs=[planned.mixture])
    work(planned.run, EXPORT, EVALUATE, REPORT)
    return planned


def refreshed(config: RunConfig, root: Path, inputs: tuple[str, ...] = ()) -> Generation:
    generation = next_generation(config, root, inputs=inputs)
    assert generation is not None
    return complete(generation)


def stamps(run: RunDir) -> dict[str, int]:
    folders = (run.shards, run.tokenizer, run.samples, run.pretrain, run.hf)
    return {folder.name: (folder / "manifest.json").stat().st_mtime_ns for folder in folders}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``a.jsonl`` and the finished run ``run``; to be copied or added to."""
    folder = tmp_path_factory.mktemp("refresh")
    write(folder / "a.jsonl", range(150))
    make_all(config_of(folder), folder / "run")
    return folder


@pytest.fixture(scope="module")
def twice(trained: Path) -> list[Generation]:
    """Two generations of ``run``, each for one more file; the run's folders stand still meanwhile."""
    before = stamps(RunDir(trained / "run"))
    made = []
    for name, numbers in (("b", range(150, 250)), ("c", range(250, 320))):
        write(trained / f"{name}.jsonl", numbers)
        made.append(refreshed(config_of(trained), trained / "run"))
    assert stamps(RunDir(trained / "run")) == before
    return made


def texts_of(folder: Path) -> set[int]:
    datasets = pytest.importorskip("datasets")
    return {int(text.split()[0]) for text in datasets.load_from_disk(str(folder))["text"]}


def test_each_generation_holds_the_new_documents_and_no_others(twice: list[Generation]) -> None:
    assert [texts_of(generation.run.folder.shards) for generation in twice] == [
        set(range(150, 250)),
        set(range(250, 320)),
    ]


def test_all_generations_have_the_tokenizer_of_the_run(trained: Path, twice: list[Generation]) -> None:
    tokenizers = [read_manifest(generation.run.folder.tokenizer) for generation in twice]
    assert tokenizers == [read_manifest(RunDir(trained / "run").tokenizer)] * 2


def test_training_starts_with_the_last_weights_of_the_generation_before(trained: Path, twice: list[Generation]) -> None:
    before = [RunDir(trained / "run"), twice[0].run.folder]
    assert [generation.run.config.train.init_from for generation in twice] == [
        last_checkpoint(folder.pretrain) for folder in before
    ]


def test_every_new_row_is_read_once_beside_as_many_old_ones(trained: Path, twice: list[Generation]) -> None:
    new = SampleDataset(twice[1].run.folder.samples).num_training_rows
    assert twice[1].run.config.train.steps == math.ceil(2 * new / BATCH)
    weights = yaml.safe_load(twice[1].mixture.read_text())
    rows = [
        SampleDataset(folder).num_training_rows
        for folder in (RunDir(trained / "run").samples, twice[0].run.folder.samples)
    ]
    expected = {"samples": 0.5, "../../samples": rows[0] / sum(rows) / 2, "../2/samples": rows[1] / sum(rows) / 2}
    assert weights == pytest.approx(expected)


def test_the_learning_rate_warms_up_again_and_falls(twice: list[Generation]) -> None:
    steps, schedule = twice[0].run.config.train.steps, twice[0].run.config.optimizer.schedule
    assert schedule.multiplier(1) <= schedule.multiplier(schedule.warmup) == 1.0
    assert schedule.warmup <= steps / 10
    assert schedule.multiplier(steps) == pytest.approx(0.1)


def test_without_new_files_there_is_nothing_to_do(trained: Path, twice: list[Generation]) -> None:
    config = config_of(trained)
    assert next_generation(config, trained / "run") is None
    assert next_generation(config, trained / "run", inputs=[str(trained / "incoming-*.jsonl")]) is None
    (trained / "incoming").mkdir()
    assert next_generation(config, trained / "run", inputs=[str(trained / "incoming")]) is None


def test_a_file_that_is_not_there_is_an_error(trained: Path, twice: list[Generation]) -> None:
    with pytest.raises(CorpusError, match=r"missing\.jsonl"):
        next_generation(config_of(trained), trained / "run", inputs=[str(trained / "missing.jsonl")])


def test_a_file_changed_since_is_told_and_left_alone(trained: Path, twice: list[Generation], tmp_path: Path) -> None:
    config, before = config_of(trained), [RunDir(trained / "run"), *(generation.run.folder for generation in twice)]
    changed = trained / "b.jsonl"
    bytes_before, times = changed.read_bytes(), changed.stat()
    write(changed, range(150, 260))
    try:
        found = find_arrivals(config, config.corpus.inputs, before)
    finally:
        changed.write_bytes(bytes_before)
        os.utime(changed, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert ([source.path for source in found.changed], found.new) == ([str(changed)], [])


def test_an_interrupted_generation_is_finished_with_its_own_files_first(trained: Path, twice: list[Generation]) -> None:
    write(trained / "d.jsonl", range(320, 380))
    begun = next_generation(config_of(trained), trained / "run")
    assert begun is not None
    work(begun.run, SHUFFLE)
    made = (begun.run.folder.shards / "manifest.json").stat().st_mtime_ns
    write(trained / "e.jsonl", range(380, 440))
    resumed = refreshed(config_of(trained), trained / "run")
    assert resumed.run.folder == begun.run.folder
    assert (resumed.run.folder.shards / "manifest.json").stat().st_mtime_ns == made
    following = next_generation(config_of(trained), trained / "run")
    assert following is not None
    assert following.run.config.corpus.inputs == (str(trained / "e.jsonl"),)


def test_generations_of_a_training_made_anew_are_put_aside(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", range(150))
    make_all(config_of(tmp_path), tmp_path / "run")
    write(tmp_path / "b.jsonl", range(150, 220))
    refreshed(config_of(tmp_path), tmp_path / "run")
    anew = config_of(tmp_path, steps=5)
    make_all(anew, tmp_path / "run")  # of both files
    assert next_generation(anew, tmp_path / "run") is None
    assert (tmp_path / "run" / "generations.replaced-1" / "2" / "hf").is_dir()


def test_a_run_without_a_finished_training_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", range(10))
    with pytest.raises(ArtifactError, match="has no finished training to continue"):
        next_generation(config_of(tmp_path), tmp_path / "run")


@pytest.mark.parametrize("replay", [-0.1, 1.0])
def test_a_replay_that_is_no_share_is_refused(replay: float, twice: list[Generation]) -> None:
    with pytest.raises(ConfigError, match="is not a share of old rows"):
        plan_training(twice[0], replay=replay)
