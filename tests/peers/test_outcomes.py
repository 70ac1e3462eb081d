"""The list of deviations is strict."""

from __future__ import annotations

from tests.peers import run
from tests.peers.run import Outcomes


def faults_of(monkeypatch, *, passed: str = "", skipped: str = "", failed: str = "") -> list[str]:
    monkeypatch.setattr(run, "DEVIATIONS", {"test_known": "its reason"})
    outcomes = Outcomes()
    outcomes.passed |= set(passed.split())
    outcomes.skipped |= dict.fromkeys(skipped.split(), "reason")
    outcomes.failed |= dict.fromkeys(failed.split(), "traceback")
    return outcomes.faults()


def test_what_is_expected_is_no_fault(monkeypatch):
    assert faults_of(monkeypatch, passed="test_a", skipped="test_b", failed="test_known") == []


def test_a_new_failure_is_a_fault_with_its_traceback(monkeypatch):
    [fault] = faults_of(monkeypatch, failed="test_known test_a")
    assert fault == "test_a fails:\ntraceback"


def test_a_deviation_that_passes_or_is_skipped_is_a_fault(monkeypatch):
    for ended in ({"passed": "test_known"}, {"skipped": "test_known"}):
        [fault] = faults_of(monkeypatch, **ended)
        assert fault.startswith("test_known passes or is skipped")


def test_a_part_that_fails_fails_the_whole(monkeypatch):
    assert faults_of(monkeypatch, passed="test_known", failed="test_known") == []


def test_a_deviation_without_a_test_is_a_fault(monkeypatch):
    [fault] = faults_of(monkeypatch, passed="test_a")
    assert fault.startswith("test_known is no test")
