"""Every configuration and every command that the documents name is understood, and planned for 1 to 64 workers."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from kexue_train.foundation.errors import ConfigError
from kexue_train.pipeline.plan import Machine, plan_run, text_source
from kexue_train.pipeline.run_config import RunConfig

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
FOR_GPUS = [path for path in CONFIGS if "device: cuda" in path.read_text(encoding="utf-8")]
_SUFFIXES = (".md", ".yaml", ".sh", ".sbatch", ".py")
_CONFIG = re.compile(r"configs/([\w-]+)\.yaml")
_OVERRIDE = re.compile(r"(?<=[\s\"'])([a-z]\w*(?:\.\w+)+=(?:\[[^\]]*\]|[^\s\"'`\\)]+))")


def _commands() -> list[tuple[str, str, tuple[str, ...]]]:
    """Where a line names a configuration, which, and the settings that it gives behind."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    files = listed or [str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if ".venv" not in path.parts]
    found = []
    for name in files:
        if not name.endswith(_SUFFIXES) or name.startswith(("tests/", "benchmarks/")):
            continue
        for number, line in enumerate((ROOT / name).read_text(encoding="utf-8").splitlines(), 1):
            if match := _CONFIG.search(line):
                found.append((f"{name}:{number}", match[1], tuple(_OVERRIDE.findall(line[match.end() :]))))
    return found


COMMANDS = _commands()


def _plan(run: RunConfig) -> object:
    return plan_run(run, [text_source(10**9)], Machine(2, 16 * 10**9)).stages["train"].device_bytes


def test_the_documents_are_found():
    assert len(COMMANDS) > 30
    assert {"train.num_workers=32"} <= {given for _, _, settings in COMMANDS for given in settings}


@pytest.mark.parametrize(("name", "settings"), sorted({(name, settings) for _, name, settings in COMMANDS}))
def test_a_command_is_understood_and_planned(name, settings):
    _plan(RunConfig.load(ROOT / "configs" / f"{name}.yaml", list(settings)))


@pytest.mark.parametrize("path", FOR_GPUS, ids=lambda path: path.stem)
def test_a_configuration_for_gpus_is_planned_for_1_to_64_of_them(path):
    for workers in (1, 2, 4, 8, 16, 32, 64):
        run = RunConfig.load(path, [f"train.num_workers={workers}"])
        assert _plan(run)
        assert run.train.compute.compile
        assert run.train.compute.recompute == "none"
        assert {phase.micro_batch_size for phase in run.train.phase_settings} == {"auto"}
    with pytest.raises(ConfigError, match=r"not a multiple of .*; take global_batch_size="):
        RunConfig.load(path, ["train.num_workers=48"])


@pytest.mark.parametrize("path", [path for path in CONFIGS if path not in FOR_GPUS], ids=lambda path: path.stem)
def test_a_configuration_for_cpus_says_so_or_takes_what_there_is(path):
    for workers in (1, 2):
        run = RunConfig.load(path, [f"train.num_workers={workers}"])
        assert _plan(run) is None
    with pytest.raises(ConfigError, match="take global_batch_size="):
        RunConfig.load(path, ["train.num_workers=64"])
