"""Sizes and times in words, what the machine allows, and logging."""

from __future__ import annotations

import logging
import logging.config
from collections import namedtuple
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kexue_train.foundation import operating_system, runtime
from kexue_train.foundation.errors import ConfigError, ResourceError
from kexue_train.foundation.runtime import (
    available_cpus,
    available_memory_bytes,
    configure_logging,
    enable_package_loggers,
    format_seconds,
    format_size,
    parse_size,
    require_disk,
    total_memory_bytes,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512", 512),
        ("1kb", 1000),
        ("2GB", 2_000_000_000),
        ("2GiB", 2_147_483_648),
        ("1.5 MB", 1_500_000),
        (" 1 TB ", 10**12),
    ],
)
def test_a_size_in_words_is_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "2 GBB", "-1GB", "1e3", "2,5GB", "0", "0.1B", "1 G B"])
def test_a_size_that_cannot_be_read_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match=r"size '.*' .*write a .*512MB"):
        parse_size(text)


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.6, "1 kB"),
        (12_345_678, "12.3 MB"),
        (999_600_000, "1 GB"),
        (2.5e15, "2,500 TB"),
        (-1500, "-1.5 kB"),
    ],
)
def test_a_size_is_shown_with_three_digits(num_bytes: float, text: str) -> None:
    assert format_size(num_bytes) == text


@given(st.integers(1, 10**18))
def test_a_shown_size_is_right_within_its_three_digits_and_never_in_powers_of_ten(num_bytes: int) -> None:
    text = format_size(num_bytes)
    assert "e" not in text
    assert abs(parse_size(text.replace(",", "")) - num_bytes) <= 0.006 * num_bytes


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (59.9, "59.9 s"),
        (59.97, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.7, "1 h 00 min"),
        (7800, "2 h 10 min"),
    ],
)
def test_a_duration_is_shown_in_two_units_at_most(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A job's cgroup inside a slice, instead of this machine's."""
    job = tmp_path / "slice" / "job"
    job.mkdir(parents=True)
    monkeypatch.setattr(runtime, "cgroups", lambda: [job, job.parent, tmp_path])
    Memory = namedtuple("Memory", ["available", "total"])
    monkeypatch.setattr("psutil.virtual_memory", lambda: Memory(10_000, 16_000))
    monkeypatch.setattr(operating_system.os, "sched_getaffinity", lambda _: set(range(8)))
    return job


def test_memory_is_what_the_machine_has_free_where_nothing_limits_it(cgroup: Path) -> None:
    assert available_memory_bytes() == 10_000
    (cgroup / "memory.max").write_text("max\n")
    (cgroup / "memory.current").write_text("4000\n")
    assert available_memory_bytes() == 10_000


@pytest.mark.parametrize("level", [".", ".."])
def test_memory_is_what_the_tightest_cgroup_leaves(cgroup: Path, level: str) -> None:
    (cgroup / level / "memory.max").write_text("5000\n")
    (cgroup / level / "memory.current").write_text("4000\n")
    assert available_memory_bytes() == 1000


@pytest.mark.parametrize(("limit", "total"), [("5000\n", 5000), ("max\n", 16_000), ("20000\n", 16_000)])
def test_all_memory_is_that_of_the_machine_or_of_the_tightest_cgroup(cgroup: Path, limit: str, total: int) -> None:
    (cgroup.parent / "memory.max").write_text(limit)
    assert total_memory_bytes() == total


def test_file_pages_in_the_cache_do_not_count_as_used(cgroup: Path) -> None:
    (cgroup / "memory.max").write_text("5000\n")
    (cgroup / "memory.current").write_text("4900\n")
    (cgroup / "memory.stat").write_text("anon 900\nactive_file 1000\ninactive_file 3000\ninactive_anon 7\n")
    assert available_memory_bytes() == 4100


@pytest.mark.parametrize(("quota", "cpus"), [("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1)])
def test_cpus_respect_the_quota_and_are_at_least_one(cgroup: Path, quota: str, cpus: int) -> None:
    (cgroup.parent / "cpu.max").write_text(quota)
    assert available_cpus() == cpus


def test_the_cgroups_of_this_process_lead_to_the_root() -> None:
    folders = operating_system.cgroups(Path("/a/root"))
    assert folders[-1] == Path("/a/root")
    assert all(parent == child.parent for child, parent in pairwise(folders))


def test_too_little_disk_is_refused_with_how_much_to_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Usage = namedtuple("Usage", ["free"])
    monkeypatch.setattr(runtime.shutil, "disk_usage", lambda _: Usage(10**9))
    require_disk(tmp_path / "not" / "yet" / "there", 10**9, "the shuffle")
    with pytest.raises(ResourceError, match="the shuffle needs about 3 GB of disk and 1 GB are free; free 2 GB there"):
        require_disk(tmp_path / "not" / "yet" / "there", 3 * 10**9, "the shuffle")


def test_log_lines_carry_the_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    monkeypatch.setenv("RANK", "3")
    root.handlers = []
    try:
        configure_logging(logging.INFO, tmp_path / "log.txt")
        logging.getLogger("kexue_train.test").info("done")
        for handler in root.handlers:
            handler.close()
    finally:
        root.handlers = before
        root.setLevel(level)
    assert (tmp_path / "log.txt").read_text().rstrip().endswith("INFO rank 3 kexue_train.test: done")


@pytest.fixture
def silenced() -> Iterator[logging.Logger]:
    """A logger of the package, disabled by a logging configuration of the program that does not name it."""
    root, loggers = logging.getLogger(), logging.Logger.manager.loggerDict
    enabled = [logger for logger in loggers.values() if isinstance(logger, logging.Logger) and not logger.disabled]
    before, level = root.handlers[:], root.level
    logger = logging.getLogger("kexue_train.test")
    logging.config.dictConfig({"version": 1})
    root.handlers[:] = before
    root.setLevel(level)
    assert logger.disabled
    yield logger
    for each in enabled:
        each.disabled = False


def test_a_logging_configuration_of_the_program_does_not_silence_the_package(silenced: logging.Logger) -> None:
    other, similar = logging.getLogger("another_package"), logging.getLogger("kexue_training")
    other.disabled = similar.disabled = True
    enable_package_loggers()
    assert not silenced.disabled
    assert (other.disabled, similar.disabled) == (True, True)
    other.disabled = similar.disabled = False


def test_what_is_silenced_on_purpose_stays_silent(silenced: logging.Logger) -> None:
    silenced.setLevel(logging.ERROR)
    try:
        enable_package_loggers()
        assert not silenced.isEnabledFor(logging.WARNING)
    finally:
        silenced.setLevel(logging.NOTSET)
