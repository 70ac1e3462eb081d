"""``python -m tests.peers.run``: transformers' own common tests of a model, on the code of an exported folder.

The tests come from the source distribution of the installed transformers and are kept in ``build/``, which git ignores.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.peers.deviations import DEVIATIONS

_ROOT = Path(__file__).resolve().parents[2]
_TESTS = Path(__file__).with_name("common_model_tests.py")

# What the common tests import but the source distribution leaves out. Generation is not for encoders; exporting is
# tested with real exporters in tests/export. The options of a configuration are any values that are no defaults.
_LEFT_OUT = {
    "__init__.py": "",
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "utils/test_configuration_utils.py": "config_common_kwargs = {'return_dict': False, 'output_hidden_states': True, "
    "'output_attentions': True, 'dtype': 'float16', 'chunk_size_feed_forward': 5, 'is_encoder_decoder': True, "
    "'architectures': ['RoFormerV2Model'], 'id2label': {0: 'label'}, 'label2id': {'label': 0}, "
    "'problem_type': 'regression'}\n",
}


class Outcomes:
    """A plugin of pytest that remembers how each test ended."""

    def __init__(self) -> None:
        self.passed: set[str] = set()
        self.skipped: dict[str, str] = {}
        self.failed: dict[str, str] = {}

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that cannot be read fails under its own name."""
        if report.failed:
            self.failed[report.nodeid] = report.longreprtext

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a part of a test (a subtest too); one part that fails or is skipped stands for the whole."""
        name = report.nodeid.rpartition("::")[2]
        if report.failed:
            self.failed[name] = f"{self.failed.get(name, '')}{report.longreprtext}\n"
        elif report.skipped:
            self.skipped[name] = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
        elif report.when == "call":
            self.passed.add(name)

    def faults(self) -> list[str]:
        """Return what differs from the list of deviations, one paragraph each."""
        tests = self.passed | self.skipped.keys() | self.failed.keys()
        unexpected = [f"{name} fails:\n{self.failed[name]}" for name in sorted(self.failed.keys() - DEVIATIONS.keys())]
        mended = [
            f"{name} passes or is skipped; remove it" for name in DEVIATIONS if name in tests - self.failed.keys()
        ]
        unknown = [f"{name} is no test of this version; remove it" for name in DEVIATIONS if name not in tests]
        return unexpected + mended + unknown


def fetch_tests(release: str) -> Path:
    """Return the folder of the package ``transformers_tests``, downloaded once for each release."""
    folder = _ROOT / "build" / "peers" / release
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            source = ["--no-deps", "--no-build-isolation", "--no-binary", "transformers", f"transformers=={release}"]
            subprocess.run([sys.executable, "-m", "pip", "download", "-q", "-d", scratch, *source], check=True)
            [archive] = Path(scratch).glob("*.tar.gz")
            with tarfile.open(archive) as unpacked:
                unpacked.extractall(scratch, filter="data")
            package = Path(scratch) / "package" / "transformers_tests"
            shutil.copytree(Path(scratch) / f"transformers-{release}" / "tests", package)
            for name, text in _LEFT_OUT.items():
                (package / name).parent.mkdir(exist_ok=True)
                (package / name).write_text(text, encoding="utf-8")
            package.parent.rename(folder)
    return folder


def main() -> int:
    """Run the tests and print the counts; 1 if anything differs from ``DEVIATIONS``."""
    release, outcomes = version("transformers"), Outcomes()
    sys.path.insert(0, str(fetch_tests(release)))
    with tempfile.TemporaryDirectory() as modules:
        os.environ |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": modules, "CUDA_VISIBLE_DEVICES": ""}
        # transformers' tests are not written for the settings and fixtures of ours.
        settings = ["-c", os.devnull, "--rootdir", str(_ROOT), "--noconftest", "--disable-warnings"]
        plain = ["-q", "--tb=short", "--no-summary", "-p", "no:cacheprovider", "--import-mode=importlib"]
        pytest.main([*settings, *plain, str(_TESTS)], plugins=[outcomes])
    faults, left = outcomes.faults(), outcomes.skipped.keys() - outcomes.failed.keys()
    for name, reason in DEVIATIONS.items():
        print(f"expected deviation: {name}: {reason}")  # noqa: T201  # the result of this command
    print(  # noqa: T201  # the result of this command
        f"transformers {release}: {len(outcomes.passed - outcomes.failed.keys() - left)} tests passed, {len(left)} "
        f"skipped by themselves, {len(outcomes.failed)} failed, {len(DEVIATIONS)} deviations expected",
        *faults,
        sep="\n",
    )
    return int(bool(faults) or not outcomes.passed)


if __name__ == "__main__":
    sys.exit(main())
