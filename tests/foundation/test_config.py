"""Reading a configuration: what is accepted, and what each refusal says."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field, model_validator

from kexue_train.foundation.config import Config
from kexue_train.foundation.config_file import apply_overrides, read_yaml
from kexue_train.foundation.errors import ConfigError


class Train(Config):
    steps: int = Field(100, gt=0)
    """Optimizer steps."""
    lr: float = 1e-3
    """Step size."""
    schedule: tuple[int, ...] = ()
    """Steps at which the rate falls."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Number format."""
    root: Path | None = None
    """A folder."""

    @model_validator(mode="after")
    def _schedule_ends_in_time(self) -> Train:
        if self.schedule and self.schedule[-1] > self.steps:
            raise ValueError(f"schedule ends at {self.schedule[-1]}, after the last step {self.steps}")
        return self


class Run(Config):
    name: str
    """Name."""
    train: Train = Train()
    """Training."""


def load(folder: Path, text: str) -> Run:
    values, lines = read_yaml(_write(folder, text))
    return Run.parse(values, where="run.yaml", lines=lines)


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder, text)
    return str(caught.value).replace(str(folder) + "/", "")


@pytest.mark.parametrize("text", ["3e-4", "3E-4", "3.0e-4", "+3e-4", "0.0003", ".3e-3", "0.3e-3", "3_0e-5"])
def test_every_yaml_way_to_write_a_number_is_a_number(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, f"name: a\ntrain: {{lr: {text}}}").train.lr == 3e-4


def test_a_whole_number_is_accepted_where_a_float_is_wanted(tmp_path: Path) -> None:
    assert load(tmp_path, "name: a\ntrain: {lr: 1}").train.lr == 1.0


def test_tuples_paths_and_null_are_read(tmp_path: Path) -> None:
    train = load(tmp_path, "name: a\ntrain:\n  schedule: [1, 2]\n  root: /data\n").train
    assert (train.schedule, train.root) == ((1, 2), Path("/data"))
    assert load(tmp_path, "name: a\ntrain: {root: null}").train.root is None


def test_an_unknown_key_is_refused_with_file_line_and_nearest_name(tmp_path: Path) -> None:
    message = refusal(tmp_path, "name: a\ntrain:\n  lr: 1e-3\n  stesp: 5\n")
    assert message == "run.yaml:4: unknown key 'train.stesp', did you mean 'steps'?"


def test_an_unknown_key_like_no_other_is_refused_with_the_allowed_ones(tmp_path: Path) -> None:
    message = refusal(tmp_path, "name: a\nzzz: 5\n")
    assert message == "run.yaml:2: unknown key 'zzz', allowed here: name, train"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("steps: '5'", 'run.yaml:3: train.steps="5": Input should be a valid integer'),
        ("steps: 5.5", "run.yaml:3: train.steps=5.5: Input should be a valid integer"),
        ("steps: 0", "run.yaml:3: train.steps=0: Input should be greater than 0"),
        ("steps: true", "run.yaml:3: train.steps=true: Input should be a valid integer"),
        ("lr: fast", 'run.yaml:3: train.lr="fast": Input should be a valid number'),
        ("lr: .inf", "run.yaml:3: train.lr=Infinity: Input should be a finite number"),
        ("lr: .nan", "run.yaml:3: train.lr=NaN: Input should be a finite number"),
        ("dtype: fp8", "run.yaml:3: train.dtype=\"fp8\": Input should be 'fp32' or 'bf16'"),
        ("schedule: [1, x]", 'run.yaml:3: train.schedule.1="x": Input should be a valid integer'),
        ("schedule: [999]", "run.yaml:2: train: schedule ends at 999, after the last step 100"),
    ],
)
def test_a_wrong_value_is_refused_with_line_key_value_and_what_is_allowed(
    tmp_path: Path, line: str, message: str
) -> None:
    assert refusal(tmp_path, f"name: a\ntrain:\n  {line}\n") == message


def test_every_problem_of_a_file_is_listed_at_once(tmp_path: Path) -> None:
    message = refusal(tmp_path, "nam: a\ntrain:\n  steps: x\n")
    assert message.splitlines() == [
        "run.yaml: 'name' is missing and has no default; add it",
        'run.yaml:3: train.steps="x": Input should be a valid integer',
        "run.yaml:1: unknown key 'nam', did you mean 'name'?",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\ntrain:\n  lr: 1\n  lr: 2\n", "run.yaml:4, column 3: not valid YAML: key 'lr' is given twice"),
        ("name: a\n1.5: 2\n", "run.yaml:2, column 1: not valid YAML: key 1.5 is not text; quote it"),
        ("name: a\non: 2\n", "run.yaml:2, column 1: not valid YAML: key True is not text; quote it"),
        ("name: {{ x }}\n", "run.yaml:1, column 8: not valid YAML: key {'x': None} is not text; quote it"),
        ("name: [1, 2\n", "run.yaml:2, column 1: not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("name: \x00\n", "run.yaml: not valid YAML: unacceptable character #x0000"),
        ("", "run.yaml: holds NoneType, expected a mapping of sections"),
        ("- a\n", "run.yaml: holds list, expected a mapping of sections"),
    ],
)
def test_what_is_no_yaml_mapping_is_refused_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    assert refusal(tmp_path, text).startswith(message)


def test_merge_keys_are_read_as_yaml_says(tmp_path: Path) -> None:
    values, _ = read_yaml(_write(tmp_path, "base: &b {lr: 1e-3, steps: 5}\ntrain:\n  <<: *b\n  steps: 7\n"))
    assert values["train"] == {"lr": 1e-3, "steps": 7}


def test_a_missing_file_is_refused_with_the_nearest_one(tmp_path: Path) -> None:
    _write(tmp_path, "name: a")
    with pytest.raises(ConfigError, match=r"rum\.yaml: no such configuration file, did you mean .*/run\.yaml\?"):
        read_yaml(tmp_path / "rum.yaml")


def test_a_file_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes("name: é".encode("latin-1"))
    with pytest.raises(ConfigError, match="cannot be read as a UTF-8 text file"):
        read_yaml(tmp_path / "run.yaml")


def test_an_override_sets_a_nested_value_and_leaves_the_original_alone() -> None:
    values = {"train": {"lr": 1.0, "steps": 5}}
    changed = apply_overrides(values, ["train.lr=3e-4", "shuffle.inputs=[a, b]", "name=x=y"])
    assert changed == {"train": {"lr": 3e-4, "steps": 5}, "shuffle": {"inputs": ["a", "b"]}, "name": "x=y"}
    assert values == {"train": {"lr": 1.0, "steps": 5}}


def test_an_override_fills_a_section_left_empty() -> None:
    assert apply_overrides({"train": None}, ["train.lr=1"]) == {"train": {"lr": 1}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lr", "override 'train.lr' is not of the form section.key=value"),
        ("=5", "override '=5' is not of the form section.key=value"),
        ("train.lr=[1", r"override 'train.lr=\[1': '\[1' is not valid YAML"),
        ("name.first=5", "override 'name.first=5': 'name' is a value, not a section"),
    ],
)
def test_an_override_that_cannot_be_applied_is_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        apply_overrides({"name": "a"}, [override])


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Train().steps = 5  # type: ignore[misc]


def test_the_docstring_under_a_field_becomes_its_description() -> None:
    assert Train.model_json_schema()["properties"]["lr"]["description"] == "Step size."


def _write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path
