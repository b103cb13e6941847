"""The files around the code can be read, and what they name exists."""

import importlib
import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_workflows_call_targets_and_scripts_that_exist() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/checks.yml").read_text())
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    targets = {match for command in commands for match in re.findall(r"make ([\w-]+)", command)}
    assert {"check", "coverage", "docs"} <= targets <= TARGETS
    assert any(".ci/run" in command for command in commands)
    assert (ROOT / ".ci/run").exists()
    versions = workflow["jobs"]["fast"]["strategy"]["matrix"]["python"]
    claimed = re.findall(r"Python :: (3\.\d+)$", "\n".join(PROJECT["classifiers"]), re.MULTILINE)
    assert set(claimed) <= set(versions), "a version that is claimed is tested"
    assert {"3.11", "3.12", "3.13"} <= set(versions)


def test_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert citation["references"][0]["url"] == "https://arxiv.org/abs/2301.04761"


def test_containers_install_extras_that_exist() -> None:
    extras = re.search(r"/src\[([\w,]+)\]", (ROOT / "Dockerfile").read_text())
    assert extras is not None
    assert set(extras[1].split(",")) <= set(PROJECT["optional-dependencies"])
    container = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())
    assert container["postCreateCommand"] == "make .venv/installed-dev"


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "SECURITY.md", "ARCHITECTURE.md"])
def test_files_that_a_page_names_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    named = set(
        re.findall(r"`((?:data_prep|pipeline|cluster|tests|configs|docs|examples|benchmarks|\.ci)/[\w./-]+)`", text)
    )
    assert named or page == "SECURITY.md"
    assert {path for path in named if not (ROOT / path).exists()} == set()
    assert set(re.findall(r"`make ([\w-]+)`", text)) <= TARGETS


def test_imports_in_the_code_of_child_processes_exist() -> None:
    """No import contract or type checker sees an import inside of a string."""
    packages = "cluster|data_prep|narrowbert|pipeline|tests"
    line = re.compile(rf"^\s*from ((?:{packages})[\w.]*) import ([\w, ]+?)(?: as \w+)?$", re.MULTILINE)
    missing = [
        f"{path.relative_to(ROOT)}: {module}.{name}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for module, names in line.findall(path.read_text())
        for name in re.split(r"\s*,\s*", names)
        if not _exists(module, name.split(" as ")[0])
    ]
    assert missing == []


def _exists(module: str, name: str) -> bool:
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        return not (error.name or "").startswith(("cluster", "data_prep", "narrowbert", "pipeline", "tests"))
    try:
        return hasattr(found, name) or bool(importlib.import_module(f"{module}.{name}"))
    except ModuleNotFoundError:
        return False
