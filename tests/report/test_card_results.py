import json

import pytest
import yaml

from kexue_train.foundation.artifacts import read_manifest, verify_artifact
from kexue_train.report.build_report import build_report

CARD = """\
---
library_name: transformers
tags: [roformer_v2]
---

# A model

Pretrained from scratch.
"""


@pytest.fixture
def run_with_card(eventful_run):
    (eventful_run / "hf" / "README.md").write_text(CARD, encoding="utf-8")
    return eventful_run


def card_of(run_dir):
    build_report(run_dir)
    return (run_dir / "hf" / "README.md").read_text(encoding="utf-8")


def test_the_card_holds_the_tables_of_the_page(run_with_card):
    card = card_of(run_with_card)
    assert card.count("## Evaluation") == 1
    assert "| eprstmt | 610 | 50.0 | 86.9 | 66.1 | 55.0 |" in card
    assert "21.8% of the hidden tokens" in card
    assert "# A model\n\nPretrained from scratch." in card


def test_hugging_face_reads_the_results(run_with_card):
    card_data = pytest.importorskip("huggingface_hub").ModelCard(card_of(run_with_card)).data
    found = {(result.dataset_name, result.metric_name): result for result in card_data.eval_results}
    assert found["held-out text", "loss on hidden tokens (nats)"].metric_value == 4.9034
    accuracy = found["eprstmt", "zero-shot accuracy, NSP"]
    assert (accuracy.task_type, accuracy.metric_type, accuracy.metric_value) == (
        "zero-shot-classification",
        "accuracy",
        0.661,
    )
    assert (card_data.library_name, card_data.tags) == ("transformers", ["roformer_v2"])


def test_the_artifact_stays_what_it_was(run_with_card):
    before = read_manifest(run_with_card / "hf")
    card_of(run_with_card)
    assert verify_artifact(run_with_card / "hf") == before


def test_writing_again_changes_nothing_and_new_results_replace_old_ones(run_with_card):
    first = card_of(run_with_card)
    assert card_of(run_with_card) == first
    path = run_with_card / "evaluate" / "mlm.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "nsp_accuracy": 0.9}))
    again = card_of(run_with_card)
    assert "90.0%" in again
    assert "69.2%" not in again
    assert again.count("## Evaluation") == again.count("model-index") == 1


def test_what_people_wrote_stays(run_with_card):
    edited = (
        card_of(run_with_card).replace("# A model", "# Our model").replace("library_name", "license: mit\nlibrary_name")
    )
    (run_with_card / "hf" / "README.md").write_text(edited + "\nWritten by hand.\n", encoding="utf-8")
    card = card_of(run_with_card)
    assert card.endswith("\nWritten by hand.\n")
    assert "# Our model" in card
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "mit"


@pytest.mark.parametrize("metadata", ["", "---\ntags: [\n---\n"])
def test_a_card_without_readable_metadata_gets_the_tables_alone(eventful_run, metadata):
    (eventful_run / "hf" / "README.md").write_text(metadata + "# A model\n", encoding="utf-8")
    card = card_of(eventful_run)
    assert card.startswith(metadata + "# A model\n")
    assert "model-index" not in card
    assert "## Evaluation" in card


def test_a_card_that_a_manifest_lists_is_left_alone(run_with_card):
    path = run_with_card / "hf" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["README.md"] = {"bytes": len(CARD), "checksum": "xxh3_128:0"}
    path.write_text(json.dumps(manifest))
    assert card_of(run_with_card) == CARD


def test_a_run_without_results_or_card_gets_none(young_run, eventful_run):
    build_report(young_run)
    build_report(eventful_run)
    assert not (young_run / "hf").exists()
    assert not (eventful_run / "hf" / "README.md").exists()
