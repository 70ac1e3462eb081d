"""A whole training by heart, what it leaves on disk, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForMaskedLM
from typer.testing import CliRunner

from kexue_train.cli.app import app
from kexue_train.downstream.finetune.paraphrase.pairs import Pairs
from kexue_train.downstream.finetune.paraphrase.problem import ParaphraseProblem
from kexue_train.downstream.finetune.paraphrase.train_writer import train_writer
from kexue_train.downstream.paraphrase.write_paraphrases import write_paraphrases
from kexue_train.downstream.paraphrase.writer import Writer, load_with_prefix_mask, load_writer
from kexue_train.downstream.results.files import read_result
from kexue_train.downstream.results.paraphrase import ParaphraseResults
from kexue_train.downstream.sequences import Reader
from kexue_train.downstream.settings import DecodingSettings, ParaphraseSettings
from kexue_train.downstream.task_files import Record
from kexue_train.foundation.errors import ConfigError, EvaluationError, TrainingError
from tests.downstream.evaluate.sentence_vectors.test_fit_whitening import read_as_sentence_transformers
from tests.downstream.evaluate.zero_shot.tiny_models import make_bert
from tests.downstream.finetune.paraphrase.tiny_pairs import PAIRS, export_small, write_pairs


def settings(**values: Any) -> ParaphraseSettings:
    fit = {"lr": 0.03, "epochs": 1, "batch_size": 8} | values.pop("fit", {})
    return ParaphraseSettings.parse({"max_length": 16, "fit": fit, **values}, where="test")


def decoding(**values: Any) -> DecodingSettings:
    return DecodingSettings.parse({"max_tokens": 28, **values}, where="test")


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_small(tmp_path_factory.mktemp("fresh") / "hf")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs") / "pairs.jsonl")


@pytest.fixture(scope="module")
def trained(fresh: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ParaphraseResults]:
    """The pairs learnt by heart."""
    out = tmp_path_factory.mktemp("trained") / "paraphraser"
    return out, train_writer(fresh, pairs, out, settings(fit={"epochs": 120}), dev=pairs)


def test_what_was_learnt_by_heart_is_written_and_found(trained: tuple[Path, ParaphraseResults]) -> None:
    folder, results = trained
    assert results.before.writing_loss > 3
    assert results.after.writing_loss < 0.1
    assert results.after.retrieval_accuracy == 1.0
    assert results.after.next_token_accuracy > 0.98
    for first, second in PAIRS:
        for source, target in ((first, second), (second, first)):
            for method in ("beam", "sample"):
                found = write_paraphrases(folder, source, 3, decoding(method=method))
                likeliest = max(found.ranked, key=lambda entry: entry.log_prob)
                assert likeliest.text.replace(" ", "") == target.replace(" ", "")
                assert found.ranked == sorted(found.ranked, key=lambda entry: -entry.similarity)


def test_the_folder_has_both_abilities_for_whoever_opens_it(
    trained: tuple[Path, ParaphraseResults], tmp_path: Path
) -> None:
    folder, results = trained
    writer = Writer.of(load_writer(folder), "a b c", 28)
    assert writer.loaded.model.config.prefix_lm is True
    opened = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True).eval()
    ids, types = torch.tensor([[*writer.source, 18]]), torch.tensor([[0] * len(writer.source) + [1]])
    with torch.no_grad():
        logits = opened(ids, token_type_ids=types).logits[0, -1]
        state = AutoModel.from_pretrained(folder, trust_remote_code=True)(ids[:, :-1]).last_hidden_state[0, 0]
    assert writer.next_tokens(np.array([[18]]))[0].argmax() == logits.argmax()
    vectors = read_as_sentence_transformers(folder, ["a b c", "n o p q", "h i j"])
    np.testing.assert_allclose(vectors[0], state.numpy(), atol=1e-5)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert unit[0] @ unit[1] > unit[0] @ unit[2] + 0.3
    assert "kexue paraphrase paraphraser" in (folder / "README.md").read_text()
    assert isinstance(results, ParaphraseResults)


def test_a_seed_repeats_and_another_differs(fresh: Path, pairs: Path, tmp_path: Path) -> None:
    runs = [
        train_writer(fresh, pairs, tmp_path / str(i), settings(fit={"batch_size": 3}), dev=pairs, seed=seed)
        for i, seed in enumerate((0, 0, 1))
    ]
    assert runs[0] == runs[1]
    assert runs[0].losses != runs[2].losses


def problem_of(fresh: Path, sides: list[tuple[str, str]]) -> ParaphraseProblem:
    loaded = load_with_prefix_mask(fresh)
    records = [Record({"text_a": a, "text_b": b}, "pairs:1") for a, b in sides]
    read = Pairs.read(records, loaded.tokenizer, 16)
    return ParaphraseProblem(loaded, read, read, 20.0, 4, Reader(loaded.tokenizer, 32))


def test_the_loss_is_that_of_every_row_alone(fresh: Path) -> None:
    """Row by row without padding, each target by itself; and the vectors from the first segment alone."""
    problem = problem_of(fresh, PAIRS[:3])
    model, total, count, vectors = problem.loaded.model, 0.0, 0, []
    for pair in problem.train.sides:
        for first, second in (pair, pair[::-1]):
            ids = torch.tensor([[2, *first, 3, *second, 3]])
            types = torch.tensor([[0] * (len(first) + 2) + [1] * (len(second) + 1)])
            with torch.no_grad():
                log_probs = model(ids, token_type_ids=types).logits[0].double().log_softmax(-1)
                vectors.append(model.roformer(ids[:, : len(first) + 2]).last_hidden_state[0, 0].double())
            for slot in range(len(first) + 2, ids.shape[1]):
                total -= float(log_probs[slot - 1, ids[0, slot]])
                count += 1
    unit = torch.nn.functional.normalize(torch.stack(vectors))
    logits = 20 * unit @ unit.T - 1e12 * torch.eye(6)
    similar = torch.nn.functional.cross_entropy(logits, torch.arange(6) ^ 1)
    terms = problem.terms(problem.train.sides)
    assert terms.writing.item() == pytest.approx(total / count, rel=1e-5)
    assert terms.similarity.item() == pytest.approx(similar.item(), rel=1e-4)
    assert problem.loss(np.arange(3)).item() == pytest.approx(total / count + similar.item(), rel=1e-4)


def test_the_result_follows_its_schema_and_is_shown(trained: tuple[Path, ParaphraseResults], tmp_path: Path) -> None:
    from kexue_train.downstream.results.files import write_result

    _, results = trained
    write_result(tmp_path / "paraphrase.json", results)
    written = json.loads((tmp_path / "paraphrase.json").read_text())
    jsonschema.validate(written, ParaphraseResults.model_json_schema())
    read = read_result(tmp_path / "paraphrase.json")
    assert isinstance(read, ParaphraseResults)
    assert read.tables() == results.tables()
    assert {score.metric for score in results.scores()} == {"loss", "accuracy"}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"text_a": "a b"}'], r":1: no value 'text_b'; the record has text_a"),
        (['{"text_a": "a b", "text_b": "  "}'], r":1: 'text_b' is '  '; expected a sentence"),
        (['{"text_a": "a b", "text_b": 3}'], r":1: 'text_b' is 3; expected a sentence"),
        (['{"text_a": "a", "text_b": "\\u0000"}'], r":1: 'text_b' has no token"),
        (["[1, 2]"], r":1: holds \[1, 2\]; expected one JSON object per line"),
        (["{"], r":1: not valid JSON"),
        ([], "holds no record"),
        (['{"text_a": "a b", "text_b": "a b"}'] * 2, r"no pair of the 2 is left \(2 two equal sides\)"),
        (
            [json.dumps({"text_a": "a " * 40, "text_b": "b"})] * 3,
            r"no pair of the 3 is left \(3 longer than 16 tokens\)",
        ),
        (['{"text_a": "a b", "text_b": "c"}'], "1 pairs to learn from, 8 to score; a pair needs others"),
    ],
)
def test_pairs_that_cannot_be_used_are_named(
    fresh: Path, pairs: Path, tmp_path: Path, lines: list[str], message: str
) -> None:
    data = tmp_path / "bad.jsonl"
    data.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    with pytest.raises(EvaluationError, match=message):
        train_writer(fresh, data, tmp_path / "out", settings(), dev=pairs)
    assert not (tmp_path / "out").exists()


def test_pairs_that_are_left_out_are_counted(fresh: Path, tmp_path: Path) -> None:
    more = [*PAIRS, ("a b", "a  b"), ("a " * 40, "b"), ("c", "d " * 40)]
    data = write_pairs(tmp_path / "pairs.jsonl", more)
    results = train_writer(fresh, data, tmp_path / "out", settings(), dev=data)
    assert results.left_out == {"two equal sides": 2, "longer than 16 tokens": 4}  # of both splits
    assert results.records == {"train": 8, "dev": 8}
    assert any("4 longer than 16 tokens" in note for note in results.notes())


def test_a_tenth_is_held_out_and_the_same_first_sentence_stays_together(fresh: Path, tmp_path: Path) -> None:
    letters = "abcdefghijklm"
    many = [(f"{a} {b}", f"{b} {c}") for a in letters for b in letters for c in "nop"]
    data = write_pairs(tmp_path / "pairs.jsonl", many)
    results = train_writer(fresh, data, tmp_path / "out", settings(max_train=8))
    assert results.is_dev_held_out
    assert results.records["train"] == 8
    assert results.records["dev"] % 3 == 0
    assert 20 < results.records["dev"] < 90


def test_models_folders_and_settings_that_do_not_fit_are_refused(fresh: Path, pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"no config\.json"):
        train_writer(tmp_path / "nowhere", pairs, tmp_path / "out", settings(), dev=pairs)
    with pytest.raises(EvaluationError, match=r"a RoFormerV2 with an MLM head .*model_type='bert'"):
        train_writer(make_bert(tmp_path / "bert", "BertForMaskedLM"), pairs, tmp_path / "out", settings(), dev=pairs)
    long = export_small(tmp_path / "long", log_n_scale=16)
    with pytest.raises(EvaluationError, match="prefix_lm=True with log_n_scale=16"):
        train_writer(long, pairs, tmp_path / "out", settings(), dev=pairs)
    with pytest.raises(EvaluationError, match="is the model to train itself"):
        train_writer(fresh, pairs, fresh, settings(), dev=pairs)
    with pytest.raises(EvaluationError, match=r"take the place of something .*--out"):
        train_writer(fresh, pairs, pairs.parent, settings(), dev=pairs)
    with pytest.raises(TrainingError, match="lower the learning rate"):
        train_writer(fresh, pairs, tmp_path / "out", settings(fit={"lr": 1e38, "batch_size": 4}), dev=pairs)
    for values, message in (
        ({"fit": {"accumulation_steps": 2}}, "cannot be computed in pieces"),
        ({"fit": {"batch_size": 1}}, "a pair needs others to be told from"),
    ):
        with pytest.raises(ConfigError, match=message):
            settings(**values)


def test_what_was_not_trained_to_write_does_not_write(fresh: Path) -> None:
    with pytest.raises(EvaluationError, match=r"was not trained to write .* train it with 'kexue finetune paraphrase'"):
        write_paraphrases(fresh, "a b", 2, decoding())


@pytest.mark.parametrize(
    ("text", "values", "message"),
    [
        ("", {}, "has no token to paraphrase"),
        ("\U0001f600", {}, "is unknown to the tokenizer"),
        ("a " * 600, {}, "the text has 600 tokens; the model was made for 512 in all, so with --max-tokens 28 it may"),
    ],
)
def test_texts_that_cannot_be_read_are_refused(
    trained: tuple[Path, ParaphraseResults], text: str, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(EvaluationError, match=message):
        write_paraphrases(trained[0], text, 2, decoding(**values))


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"method": "beam", "top_k": 3}, "top_k"),
        ({"method": "beam", "seed": 3}, "seed"),
        ({"method": "sample", "beams": 3}, "beams"),
    ],
)
def test_options_of_the_other_method_are_refused(values: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} has no effect with method={values['method']}"):
        decoding(**values)


def test_the_commands_train_and_write(fresh: Path, pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "paraphraser"
    common = ["--data", str(pairs), "--dev", str(pairs), "-o", str(out), "--max-length", "16"]
    ended = CliRunner().invoke(app, ["finetune", "paraphrase", str(fresh), *common, "--epochs", "2", "--lr", "0.03"])
    assert ended.exit_code == 0, ended.output
    assert "8 held-out pairs" in ended.stdout
    result = read_result(out / "paraphrase.json")
    assert isinstance(result, ParaphraseResults)
    assert len(result.after_epochs) == 2
    write = ["paraphrase", str(out), "a b c", "-n", "4", "--max-tokens", "20"]
    plain, as_json = CliRunner().invoke(app, write), CliRunner().invoke(app, [*write, "--json"])
    assert plain.exit_code == as_json.exit_code == 0, plain.output
    found = json.loads(as_json.stdout)
    assert [line.split(maxsplit=1)[1] for line in plain.stdout.splitlines()] == [entry["text"] for entry in found]
    assert len(found) <= 4
    assert "20 texts written" in plain.stderr
    assert CliRunner().invoke(app, [*write, "--seed", "1"]).stdout != plain.stdout
    beam = CliRunner().invoke(app, [*write, "--method", "beam"])
    assert beam.exit_code == 0, beam.output
    with pytest.raises(ConfigError, match="seed has no effect with method=beam"):
        CliRunner().invoke(app, [*write, "--method", "beam", "--seed", "1"], catch_exceptions=False)


@pytest.mark.slow
def test_in_a_terminal_both_commands_work_and_errors_are_one_paragraph(
    fresh: Path, pairs: Path, tmp_path: Path
) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "kexue_train", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=1200, check=False)

    train = ["finetune", "paraphrase", str(fresh), "--data", str(pairs), "--dev", str(pairs), "-o", "out"]
    trained = run(*train, "--max-length", "16", "--epochs", "1")
    assert trained.returncode == 0, trained.stderr
    assert "8 held-out pairs" in trained.stdout
    written = run("paraphrase", "out", "a b c", "-n", "3")
    assert written.returncode == 0, written.stderr
    assert 0 < len(written.stdout.splitlines()) <= 3
    refused = run("paraphrase", str(fresh), "a b c")
    assert refused.returncode == 2
    assert refused.stderr.strip().startswith("error: ")
    assert "Traceback" not in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
