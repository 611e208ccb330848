"""The files around the code agree with it: README, docs, environment.yml, the lock, the notebooks."""

import importlib
import re
import subprocess
import tomllib

import nbformat
import pytest
import typer
import yaml

import kmon
from kmon.cli import app
from kmon.config import Config, load_config
from kmon.config.models import Incidents
from kmon.resources import EXAMPLES, TEMPLATE
from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
DOCS = {p.name: p.read_text(encoding="utf-8") for p in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]}
COMMANDS = typer.main.get_command(app).commands
TRACKED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
CONDA_NAMES = {
    "confluent-kafka": "python-confluent-kafka",
    "duckdb": "python-duckdb",
    "matplotlib": "matplotlib-base",
    "tzdata": "python-tzdata",
}


def requirement(text):
    name, constraint = re.fullmatch(r"([a-z0-9-]+)(.*)", text.replace(" ", "")).groups()
    return CONDA_NAMES.get(name, name), constraint


@pytest.mark.xdist_group("together")
def test_groups_of_tests_stay_together(request):
    if request.config.getoption("loadgroup", default=False):
        assert request.node.nodeid.endswith("@together")


def test_environment_yml_equals_pyproject():
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    by_pip = next(d["pip"] for d in dependencies if isinstance(d, dict))
    listed = [d for d in dependencies if isinstance(d, str) and d != "pip"] + [
        d for d in by_pip if not d.startswith("-")
    ]
    wanted = [*PROJECT["project"]["dependencies"], "python" + PROJECT["project"]["requires-python"]]
    assert dict(map(requirement, listed)) == dict(map(requirement, wanted))


@pytest.mark.parametrize(
    ("file", "wanted"),
    [
        ("requirements.lock", PROJECT["project"]["dependencies"] + PROJECT["project"]["optional-dependencies"]["dev"]),
        ("rivals.lock", PROJECT["dependency-groups"]["rivals"]),
    ],
)
def test_a_lock_pins_every_dependency_with_a_hash_and_names_no_index(file, wanted):
    lock = (ROOT / file).read_text(encoding="utf-8")
    pinned = re.findall(r"^([a-z0-9-]+)==[^ ;\\]+", lock, flags=re.MULTILINE)
    assert {requirement(d)[0] for d in wanted} <= {CONDA_NAMES.get(name, name) for name in pinned}
    assert not re.search(r"https?://|--index|--find-links", lock)
    assert lock.count("--hash=sha256:") >= len(pinned)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_is_in_the_readme_and_has_help(command):
    assert f"`kmon {command}" in DOCS["README.md"]
    assert COMMANDS[command].help


def test_the_readme_names_no_command_that_does_not_exist():
    named = set(re.findall(r"`kmon ([a-z]+)", "\n".join(DOCS.values())))
    assert named <= set(COMMANDS)


@pytest.mark.parametrize("name", sorted(DOCS))
def test_links_lead_somewhere(name):
    folder = ROOT if (ROOT / name).exists() else ROOT / "docs"
    links = re.findall(r"\]\((?!https?://)([^)#]+)", DOCS[name])
    assert [link for link in links if not (folder / link).exists()] == []


@pytest.mark.parametrize("name", sorted(DOCS))
def test_modules_named_in_the_docs_exist(name):
    """By their path, from the root or from `kmon/`."""
    named = set(re.findall(r"`([a-z_]+(?:/[a-z_]+)*\.py)\b", DOCS[name]))
    assert [path for path in named if not (ROOT / "kmon" / path).exists() and not (ROOT / path).exists()] == []


def test_the_detector_of_contributing_works():
    import polars as pl

    code = re.search(r"```python\n(.*?)```", DOCS["CONTRIBUTING.md"], flags=re.DOTALL)[1]
    namespace = {}
    exec(compile(code, "CONTRIBUTING.md", "exec"), namespace)
    windows = pl.DataFrame(
        {"value": [50.0, 10.0], "previous_value": [[12.0, 8.0], [12.0, 8.0]]},
        schema={"value": pl.Float64, "previous_value": pl.Array(pl.Float64, 2)},
    )
    scores = namespace["tripled"](least=5.0).score(windows)
    assert scores["notable"].to_list() == [True, False]


def test_the_series_detector_of_contributing_works():
    import numpy as np
    import scipy.stats

    import kmon

    code = re.findall(r"```python\n(.*?)```", DOCS["CONTRIBUTING.md"], flags=re.DOTALL)[1]
    namespace = {"kmon": kmon, "np": np, "scipy": scipy}
    exec(compile(code, "CONTRIBUTING.md", "exec"), namespace)
    values = np.append(np.random.default_rng(1).normal(100, 1, 2000), 110.0)
    p_value = namespace["far"](days=3).judge(np.arange(2001) * 300.0, values, last=1).p_value
    assert p_value[-1] < 1e-12


def test_the_contributing_snippets_are_valid_configuration():
    text = TEMPLATE.read_text(encoding="utf-8")
    for snippet in re.findall(r"```yaml\n(.*?)```", DOCS["CONTRIBUTING.md"], flags=re.DOTALL):
        merged = yaml.safe_load(text)
        for section, value in yaml.safe_load(snippet).items():
            merged[section] = {**merged.get(section, {}), **value} if isinstance(value, dict) else value
        assert Config.model_validate(merged)


@pytest.mark.parametrize("path", [TEMPLATE, *EXAMPLES.glob("*/kmon.yaml")], ids=lambda p: p.parent.name)
def test_shipped_configurations_are_valid(path):
    assert load_config(path).metrics


def test_the_template_tells_every_key_of_incidents():
    assert set(yaml.safe_load(TEMPLATE.read_text(encoding="utf-8"))["incidents"]) == set(Incidents.model_fields)


def test_the_public_names_are_sorted_and_exist():
    assert kmon.__all__ == sorted(kmon.__all__)
    assert all(getattr(kmon, name) for name in kmon.__all__)


def test_why_is_a_function_and_the_readme_says_how_to_call_it():
    assert kmon.why is importlib.import_module("kmon.reasons").why
    assert "kmon.why(" in DOCS["README.md"]


@pytest.mark.parametrize("path", [p for p in TRACKED if p.startswith("notebooks/") and p.endswith(".ipynb")])
def test_a_notebook_is_thin_and_has_no_outputs(path):
    notebook = nbformat.read(ROOT / path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)
    assert max(len(cell.source.splitlines()) for cell in cells) <= 14


def test_nothing_of_this_machine_is_in_the_repository():
    texts = {p: (ROOT / p).read_bytes() for p in TRACKED if p and (ROOT / p).is_file()}
    here = re.compile(rb"/root/|/work/(?:main|shared|\.library)|site-packages/[a-z]")
    assert [p for p, text in texts.items() if here.search(text) and not p.endswith("test_project.py")] == []
