"""The house stays as planned: imports in one direction, light commands, declared dependencies, links that lead."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from kexue_train import __version__
from kexue_train.pipeline.stages import STAGES
from tests.draw_structure import PICTURE, draw
from tests.oldest_versions import oldest_versions

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Where the name of the import is not the name of the package.
PACKAGE_OF_IMPORT = {"grpc": "grpcio", "yaml": "pyyaml", "pydantic_core": "pydantic"}
HEAVY = {
    "torch",
    "ray",
    "deepspeed",
    "transformers",
    "datasets",
    "pyarrow",
    "pandas",
    "prefect",
    "tokenizers",
}


def tracked_files() -> list[Path]:
    """What belongs to the repository: known to git, or new and not ignored."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout to tell the repository's files from others")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def declared() -> dict[str, Requirement]:
    """Every direct dependency of every extra, by its canonical name."""
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    requirements = [Requirement(line) for group in groups for line in group]
    return {canonicalize_name(r.name): r for r in requirements if r.name != PROJECT["name"]}


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {
        canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines) if version
    }


def explained() -> set[str]:
    rows = re.findall(r"^\| ([^|]+) \| [^|]+ \| [^|]+ \|$", (ROOT / "docs/dependencies.md").read_text("utf-8"), re.M)
    return {canonicalize_name(name) for row in rows for name in row.split(", ")} - {"package", "---"}


def imported_packages(folder: str) -> set[str]:
    names: set[str] = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names.add(str(node.module).partition(".")[0])
    third_party = names - set(sys.stdlib_module_names) - {"kexue_train", "flows"}
    return {canonicalize_name(PACKAGE_OF_IMPORT.get(name, name)) for name in third_party}


def test_imports_follow_the_contracts() -> None:
    # A process of its own, since import-linter's logging configuration switches off the loggers of the one it runs in.
    lint = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    done = subprocess.run([*lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("module", ["kexue_train", "kexue_train.cli.app", "kexue_train.pipeline.run_config"])
def test_a_light_module_loads_no_heavy_package(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("folder", ["kexue_train", "flows"])
def test_every_third_party_import_is_a_declared_dependency(folder: str) -> None:
    assert imported_packages(folder) - declared().keys() == set()


def test_every_declared_dependency_is_explained_and_no_other() -> None:
    assert explained() == declared().keys()


def test_every_declared_dependency_is_pinned_within_its_bounds() -> None:
    versions = pins()
    unfit = [str(r) for name, r in declared().items() if not r.specifier.contains(versions.get(name, "0"))]
    assert unfit == []


def test_every_oldest_version_is_a_declared_bound() -> None:
    oldest = [Requirement(line) for line in oldest_versions()]
    assert len(oldest) >= 15
    assert all(str(r.specifier).startswith("==") and r.name for r in oldest)
    assert all(f">={str(r.specifier)[2:]}" in str(declared()[canonicalize_name(r.name)].specifier) for r in oldest)


def test_pins_are_plain_versions_that_any_machine_can_get() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    odd = [
        line for line in lines if not line.startswith("#") and not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9a-z.]+", line)
    ]
    assert odd == []
    assert [name for name in pins() if name.startswith(("nvidia-", "cuda-"))] == []


def test_every_relative_link_leads_to_a_file() -> None:
    dead = []
    for path in tracked_files():
        if path.suffix == ".md":
            text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.S)
            links = re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", text)
            targets = [a or b for a, b in links]
            local = [t.partition("#")[0] for t in targets if not re.match(r"[a-z]+:|#", t)]
            dead += [f"{path.relative_to(ROOT)}: {t}" for t in local if not (path.parent / t).exists()]
    assert dead == []


def test_no_file_names_a_path_of_one_machine() -> None:
    # Spelt in pieces, or this file would name them too.
    machine = re.compile("|".join(["/wo" + r"rk/(main|shared)\b", "/tm" + "p/w/", "/ro" + r"ot/\.", "/o" + r"pt/pypi"]))
    beside = ".." + "/shared"
    found = []
    for path in tracked_files():
        text = path.read_bytes().decode("utf-8", errors="replace")
        is_test = path.is_relative_to(ROOT / "tests")
        if machine.search(text) or (beside in text and not is_test):
            found.append(str(path.relative_to(ROOT)))
    assert found == []


def test_the_stages_are_numbered_in_order_and_each_once() -> None:
    first_lines = [path.read_text(encoding="utf-8").partition("\n")[0] for path in (ROOT / "kexue_train").rglob("*.py")]
    numbers = [int(match[1]) for line in first_lines if (match := re.match(r'"""STAGE (\d+)\b', line))]
    assert sorted(numbers) == list(range(len(numbers)))
    assert len(numbers) >= 8


def test_the_picture_of_the_structure_is_drawn_from_the_code() -> None:
    assert PICTURE.read_text(encoding="utf-8") == draw(), "write it anew: python -m tests.draw_structure"


def test_the_picture_of_the_flow_shows_every_stage() -> None:
    picture = (ROOT / "docs" / "flow.svg").read_text(encoding="utf-8")
    assert [stage.name for stage in STAGES if f">{stage.name}<" not in picture] == []


def test_the_changelog_and_the_package_agree_on_the_version() -> None:
    released = re.findall(r"^## \[?(\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert not released or released[0] == __version__


def test_pre_commit_runs_what_make_check_runs() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = re.search(r"^check:.*\n((?:\t.*\n)+)", makefile, re.M)
    assert recipe
    in_make = re.findall(r"\$\(BIN\)/([a-z-]+(?: [a-z]+)?(?: --check)?)", recipe[1])
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    in_hooks = [hook["entry"].removeprefix(".venv/bin/") for repo in config["repos"] for hook in repo["hooks"]]
    assert in_hooks == in_make


def test_continuous_integration_runs_the_checks_and_all_tests() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
    assert re.findall(r"^make (\S+)", script, re.M) == ["check", "test"]


def test_make_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.M)
    assert phony
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.findall(r"^  make (\S+)", shown, re.M) == phony[1].split()
