"""The house's own rules: who imports whom, how long files are, what serving never loads, who reads the environment."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(path for folder in ("app", "models") for path in (ROOT / folder).rglob("*.py"))
EVERY_FILE = sorted(
    path
    for folder in ("app", "models", "migrations", "tests", "benchmarks", "requirements")
    for path in (ROOT / folder).rglob("*.py")
)
LONGEST_FILE = 400
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "core", "base", "manager", "misc", "shared"}

ENVIRONMENT_READERS = {
    "app/settings.py": "the one reader of settings",
    "app/cli/replay.py": "starts a service with the surroundings and keys of its own",
    "app/cli/serving.py": "tells its workers whom not to outlive",
    "app/cli/metrics_files.py": "tells the workers where prometheus_client's files are",
    "app/cli/surroundings.py": "tells child processes where the servers are that it started",
    "app/orphans.py": "a worker learns from its parent's environment whom to outlive",
    "app/api/operations.py": "the variable is prometheus_client's own protocol between processes",
    "app/storage/embedded/holder.py": "hands its environment on to the supervisor, with the path to this package",
    "app/storage/embedded/processes.py": "hands a cleaned environment on to the servers",
}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported_modules(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_layers_import_only_lower_ones() -> None:
    linted = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert linted.returncode == 0, linted.stdout + linted.stderr
    assert "0 broken" in linted.stdout


@pytest.mark.parametrize("path", EVERY_FILE, ids=name_of)
def test_a_file_has_one_job_and_a_name_that_says_it(path: Path) -> None:
    lines = len(path.read_text("utf-8").splitlines())

    assert lines <= LONGEST_FILE, f"{lines} lines: over {LONGEST_FILE} is a sign of two jobs"
    assert VAGUE_NAMES.isdisjoint({path.stem, *path.relative_to(ROOT).parent.parts}), "name it for a noun or a verb"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_module_says_its_job_in_its_opening_sentence(path: Path) -> None:
    text = path.read_text("utf-8")

    assert not text.strip() or ast.get_docstring(ast.parse(text)), "no docstring at the top"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_nothing_is_pickled(path: Path) -> None:
    """Whoever can write a release or to Redis must not be able to run code here."""
    forbidden = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}

    assert forbidden.isdisjoint(module.split(".")[0] for module in imported_modules(path))
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert isinstance(node.value, ast.Constant), f"line {node.value.lineno}: allow_pickle is not plainly False"
            assert node.value.value is False, f"line {node.value.lineno}: allow_pickle"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_only_settings_reads_the_environment(path: Path) -> None:
    reads = {
        node.lineno
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute | ast.Name)
        and (node.attr if isinstance(node, ast.Attribute) else node.id) in ("environ", "environb", "getenv")
    }

    assert not reads or name_of(path) in ENVIRONMENT_READERS, f"lines {sorted(reads)} read the environment"


def test_the_list_of_those_who_read_the_environment_has_no_strangers() -> None:
    missing = [name for name in ENVIRONMENT_READERS if not (ROOT / name).is_file()]
    idle = [
        name
        for name in ENVIRONMENT_READERS
        if name not in missing and name != "app/settings.py" and "environ" not in (ROOT / name).read_text("utf-8")
    ]

    assert not missing
    assert not idle


REFUSE_TORCH = """
import sys


class Refusal:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "tensorflow", "jax"):
            raise AssertionError(f"{name} is imported")


sys.meta_path.insert(0, Refusal())
"""


@pytest.mark.parametrize(
    "program",
    [
        "from app.main import create_app; from app.settings import Settings; create_app(Settings())",
        "import app.cli",
        "import app.serving.model_host, models.recipes, models.artifacts",
        "import app.training.job",
    ],
    ids=["serving", "terminal", "releases", "training"],
)
def test_torch_is_never_loaded(program: str) -> None:
    """1.7 s and 220 MB in every worker; the recommenders of today are fitted without it too."""
    ran = subprocess.run(
        [sys.executable, "-c", REFUSE_TORCH + program], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert ran.returncode == 0, ran.stderr[-2000:]
