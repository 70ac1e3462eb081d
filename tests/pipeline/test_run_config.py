"""Run configurations: what is shipped loads, and what is wrong is named with file, line and way out."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from kexue_train.foundation.errors import ConfigError
from kexue_train.pipeline.run_config import RunConfig

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SHIPPED = sorted(CONFIGS.glob("*.yaml"))
REGENERATE = (
    'python -c "import json; from kexue_train.pipeline.run_config import RunConfig; '
    'print(json.dumps(RunConfig.model_json_schema(), indent=2, ensure_ascii=False))" > configs/schema.json'
)
SMALLEST: dict[str, Any] = {"name": "a", "corpus": {"inputs": ["x.txt"]}, "train": {"steps": 5000}}


def load(folder: Path, text: str, *overrides: str) -> RunConfig:
    (folder / "run.yaml").write_text(text, encoding="utf-8")
    return RunConfig.load(folder / "run.yaml", overrides)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_configuration_loads_under_its_file_name(path: Path) -> None:
    assert RunConfig.load(path).name == path.stem


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_head_of_a_shipped_configuration_says_what_it_needs_takes_and_reaches(path: Path) -> None:
    head = path.read_text(encoding="utf-8").partition("\n\n")[0].splitlines()
    assert all(line.startswith("#") for line in head)
    starts = [line[2:].split(" ")[0] for line in head]
    assert [word for word in starts if word in ("Needs", "Takes", "Reaches", "Launch")] == [
        "Needs",
        "Takes",
        "Reaches",
        "Launch",
    ]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_resolved_configuration_reads_back_as_itself(path: Path, tmp_path: Path) -> None:
    config = RunConfig.load(path)
    assert load(tmp_path, config.to_yaml()) == config


def test_the_schema_for_editors_is_that_of_the_code() -> None:
    written = json.loads((CONFIGS / "schema.json").read_text(encoding="utf-8"))
    assert written == RunConfig.model_json_schema(), f"configs/schema.json is out of date; write it anew: {REGENERATE}"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_configuration_fits_the_schema(path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    # As in JSON, where a key is a text.
    values = json.loads(RunConfig.load(path).model_dump_json())
    jsonschema.validate(values, json.loads((CONFIGS / "schema.json").read_text(encoding="utf-8")))


def test_every_setting_is_described_in_the_schema() -> None:
    schema = RunConfig.model_json_schema()
    sections = {"RunConfig": schema, **schema["$defs"]}
    bare = [
        f"{name}.{key}"
        for name, section in sections.items()
        for key, value in section.get("properties", {}).items()
        if "description" not in value and "$ref" not in value
    ]
    assert bare == []


def test_an_unknown_key_is_refused_with_its_line_and_the_nearest_name(tmp_path: Path) -> None:
    text = "name: a\ncorpus:\n  inputs: [x]\ntrain:\n  steps: 5000\n  micro_batch_sise: 4\n"
    with pytest.raises(ConfigError) as error:
        load(tmp_path, text)
    assert str(error.value) == (
        f"{tmp_path}/run.yaml:6: unknown key 'train.micro_batch_sise', did you mean 'micro_batch_size'?"
    )


def test_an_unknown_section_is_refused_with_the_nearest_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run.yaml:4: unknown key 'modell', did you mean 'model'\?"):
        load(tmp_path, "name: a\ncorpus: {inputs: [x]}\ntrain: {steps: 5000}\nmodell: {}\n")


def test_every_problem_of_a_file_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load(tmp_path, "name: 'a b'\ncorpus: {inputs: [x]}\ntrain:\n  steps: 0\nseed: -1\n")
    assert [line.split(": ")[0] for line in str(error.value).splitlines()] == [
        f"{tmp_path}/run.yaml:{line}" for line in (1, 5, 4)
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": {"seq_len": 513}}, r"samples.seq_len=513 is longer than model.max_position_embeddings=512; lower"),
        (
            {"optimizer": {"schedule": {5001: 1.0}}},
            r"first knot at step 5001, but train.steps=5000, so the learning rate would only ever rise; shorten",
        ),
        (
            {"train": {"phases": [{"steps": 5000, "seq_len": 128}]}},
            r"samples.seq_len=512 is not one of the lengths that train.phases name \(128\); set it to the one that the",
        ),
        (
            {"train": {"phases": [{"steps": 2500, "seq_len": 512}, {"steps": 2500, "seq_len": 1024}]}},
            r"train.phases has seq_len=1024, longer than model.max_position_embeddings=512",
        ),
        ({"corpus": {"source": "files"}}, r"corpus.inputs is empty; name files, .* corpus.source: installed_docs"),
        ({"corpus": {"source": "installed_docs", "inputs": ["x"]}}, r"'inputs' is given though source is installed_"),
    ],
    ids=[
        "rows longer than positions",
        "warm-up longer than training",
        "no samples",
        "long phase",
        "no inputs",
        "inputs not read",
    ],
)
def test_sections_that_contradict_each_other_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, yaml.safe_dump(SMALLEST | changes))


WITHOUT_EFFECT = [
    ("corpus.max_size=4MB", []),
    ("shuffle.shard_size=1GB", ["shuffle.shards=4"]),
    ("shuffle.document=block", ["shuffle.format=jsonl"]),
    ("shuffle.text_key=body", ["shuffle.format=text"]),
    ("shuffle.keep_dropped=true", []),
    ("tokenizer.min_frequency=3", ["tokenizer.source=vocab.txt"]),
    ("tokenizer.max_size=4GB", ["tokenizer.source=vocab.txt"]),
    ("samples.short_sequence_probability=0.2", ["samples.nsp=false"]),
    ("samples.dictionary=words.txt", ["samples.whole_word=false"]),
    ("samples.words=pmi", ["samples.whole_word=false"]),
    ("train.objective.nsp_weight=0.5", ["samples.nsp=false"]),
    ("train.faults.max_rollbacks=2", ["train.faults.on_spike=stop"]),
    ("evaluate.tasks=[tnews]", []),
    ("evaluate.sts_sets=[STS-B]", []),
    ("evaluate.num_predictions=3", ["evaluate.masked_sentences=[]"]),
]


@pytest.mark.parametrize(("override", "beside"), WITHOUT_EFFECT, ids=str)
def test_a_setting_without_effect_is_refused_and_its_default_is_not(
    override: str, beside: list[str], tmp_path: Path
) -> None:
    config = load(tmp_path, yaml.safe_dump(SMALLEST), *beside)
    assert load(tmp_path, config.to_yaml()) == config  # where every default is written out
    name = override.partition("=")[0].rpartition(".")[2]
    with pytest.raises(ConfigError) as error:
        load(tmp_path, yaml.safe_dump(SMALLEST), *beside, override)
    message = str(error.value)
    assert name in message
    assert "remove" in message or "drop" in message


NESTED = {
    "corpus": {"inputs": ["a.txt", "deep/*.txt", "@list", "-", "s3://b/c.jsonl", "hf://d", "/e.txt", "~/f.txt"]},
    "shuffle": {"weights": {"a.txt": 2.0}},
    "tokenizer": {"source": "vocab.txt"},
    "samples": {"dictionary": "../words.txt"},
    "train": {"steps": 5000, "init_from": "model"},
    "evaluate": {"data": "data", "sts_data": "sts"},
}


@pytest.mark.parametrize("called_from", [".", "configs", "elsewhere"])
def test_relative_paths_of_a_file_start_at_its_folder(
    called_from: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("configs", "elsewhere"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / called_from)
    file = tmp_path / "configs" / "run.yaml"
    file.write_text(yaml.safe_dump(SMALLEST | NESTED), encoding="utf-8")
    config, home = RunConfig.load(Path(os.path.relpath(file))), tmp_path / "configs"
    assert config.corpus.inputs == (
        *(f"{home}/a.txt", f"{home}/deep/*.txt", f"@{home}/list"),
        *("-", "s3://b/c.jsonl", "hf://d", "/e.txt", "~/f.txt"),
    )
    assert config.shuffle.weights == {f"{home}/a.txt": 2.0}
    assert (config.tokenizer.source, config.samples.dictionary) == (home / "vocab.txt", tmp_path / "words.txt")
    assert (config.train.init_from, config.evaluate.data, config.evaluate.sts_data) == (
        *(home / "model", home / "data", home / "sts"),
    )


def test_relative_paths_of_an_override_start_at_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "configs").mkdir()
    monkeypatch.chdir(tmp_path)
    for override in ("corpus.inputs=[b.txt]", "corpus={inputs: [b.txt]}"):
        config = load(tmp_path / "configs", yaml.safe_dump(SMALLEST), override)
        assert config.corpus.inputs == (f"{tmp_path}/b.txt",)


def test_a_path_that_is_only_in_the_current_folder_is_taken_from_there_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "x.txt").touch()
    monkeypatch.chdir(tmp_path)
    assert load(tmp_path / "configs", yaml.safe_dump(SMALLEST)).corpus.inputs == (f"{tmp_path}/x.txt",)
    assert "corpus.inputs: relative paths start at the folder of the file, which has no x.txt" in caplog.text
    (tmp_path / "configs" / "x.txt").touch()
    assert load(tmp_path / "configs", yaml.safe_dump(SMALLEST)).corpus.inputs == (f"{tmp_path}/configs/x.txt",)


def test_shipped_configurations_read_the_folder_beside_theirs() -> None:
    inputs = {path.stem: RunConfig.load(path).corpus.inputs for path in SHIPPED}
    assert set(inputs.pop("demo")) == set()
    assert set(inputs.values()) == {(str(CONFIGS.parent / "corpus"),)}


def test_sections_at_the_edge_of_agreeing_are_taken(tmp_path: Path) -> None:
    edge = {"samples": {"seq_len": 512}, "optimizer": {"schedule": {5000: 1.0}}}
    assert load(tmp_path, yaml.safe_dump(SMALLEST | edge)).samples.seq_len == 512


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps=-1", r"(?m)^override: train\.steps=-1: "),
        ("train={steps: -1}", r"(?m)^override: train\.steps=-1: "),
        ("train.stepz=5", r"(?m)^override: unknown key 'train\.stepz', did you mean 'steps'\?"),
        ("seed=1", r"run\.yaml:3: train\.steps=0: "),
    ],
)
def test_a_wrong_override_is_not_looked_for_in_the_file(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, "name: a\ntrain:\n  steps: 0\n", override)


def test_an_override_wins_over_the_file_and_is_checked_like_it(tmp_path: Path) -> None:
    text = yaml.safe_dump(SMALLEST)
    assert load(tmp_path, text, "train.steps=6000", "optimizer.schedule={6000: 1.0}").train.steps == 6000
    with pytest.raises(ConfigError, match=r"first knot at step 6000, but train\.steps=5000"):
        load(tmp_path, text, "optimizer.schedule={6000: 1.0}")


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "a b"])
def test_a_name_that_is_no_plain_folder_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="name"):
        load(tmp_path, yaml.safe_dump(SMALLEST | {"name": name}))
