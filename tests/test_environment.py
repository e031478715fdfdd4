"""pyproject.toml, environment.yml, constraints.txt and the Makefile must tell one story."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def constraints() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    return {canonicalize_name(re.split("==+", line)[0]): re.split("==+", line)[1] for line in lines}


def test_environment_yml_says_the_same_as_pyproject():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    pip = next(entry["pip"] for entry in conda if isinstance(entry, dict))
    assert sorted(pip) == sorted([*PROJECT["dependencies"], *EXTRAS["elpv"], *EXTRAS["test"]])
    assert f"python {PROJECT['requires-python']}" in conda


@pytest.mark.parametrize("text", [*PROJECT["dependencies"], *(r for extra in EXTRAS.values() for r in extra)])
def test_every_requirement_is_bounded_and_the_tested_version_is_inside(text):
    requirement = Requirement(text)
    assert any(s.operator in (">=", "==") for s in requirement.specifier), "no lower bound"
    assert requirement.specifier.contains(constraints()[canonicalize_name(requirement.name)], prereleases=True)


def test_constraints_are_exact_and_name_no_place():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    assert all(re.fullmatch(r"[\w.-]+={2,3}[\w.]+", line) for line in lines)
    assert {"torch===2.15.0", "torchvision===0.29.2"} <= set(lines), "a build with a local label could slip in"


def test_every_import_of_the_library_is_a_declared_dependency():
    import ast
    import sys

    modules = {"PIL": "pillow", "yaml": "pyyaml", "sklearn": "scikit-learn", "skimage": "scikit-image"}
    modules |= {"open_clip": "open_clip_torch", "jupyter_client": "ipykernel", "pydantic_core": "pydantic"}
    declared = {canonicalize_name(Requirement(r).name) for r in [*PROJECT["dependencies"], *EXTRAS["elpv"]]}
    for path in sorted((ROOT / "fsad_lib").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for name in {n.split(".")[0] for n in names} - set(sys.stdlib_module_names) - {"fsad_lib"}:
                assert canonicalize_name(modules.get(name, name)) in declared, f"{path.name} imports {name}"


def test_ci_runs_make_test_and_everyone_finds_the_extra_named_with_its_licence():
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    assert "CC BY-NC-SA 4.0" in (ROOT / "pyproject.toml").read_text()
