"""What the documents name exists, and what exists is documented."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import prometheus_client
import pytest
import typer.main
from click import Group
from fastapi.routing import APIRoute
from prometheus_client.metrics import MetricWrapperBase
from pydantic_core import PydanticUndefined

from app import cli, telemetry
from app.console import views
from app.main import create_app
from app.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
SETTINGS_COLUMNS = 4
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


def text_of(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def table_rows(name: str) -> list[list[str]]:
    """The cells of every table row whose first cell is code."""
    lines = [line for line in text_of(name).splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def documented_code(name: str) -> dict[str, list[str]]:
    """Rows by the code in their first cell."""
    return {row[0].strip("`"): row for row in table_rows(name)}


def environment_name(field: str) -> str:
    alias = Settings.model_fields[field].validation_alias
    return alias if isinstance(alias, str) else f"{Settings.model_config['env_prefix']}{field}".upper()


def test_every_setting_is_documented_and_no_other() -> None:
    documented = {name for name, row in documented_code("docs/settings.md").items() if len(row) == SETTINGS_COLUMNS}

    assert documented == {environment_name(field) for field in Settings.model_fields}


@pytest.mark.parametrize("field", sorted(Settings.model_fields))
def test_a_documented_default_is_the_default(field: str) -> None:
    default = Settings.model_fields[field].default
    documented = documented_code("docs/settings.md")[environment_name(field)][1].strip("`")

    assert default is not PydanticUndefined
    if isinstance(default, dict):
        assert documented == "see below"
        for name, value in default.items():
            assert re.search(rf"\| `{name}` \| {re.escape(str(value))} \|", text_of("docs/settings.md")), name
    elif default in (None, ()):
        assert documented == "unset"
    else:
        assert documented == str(default).lower() if isinstance(default, bool) else documented == str(default)


def declared_metrics() -> dict[str, MetricWrapperBase]:
    declared = [value for value in vars(telemetry).values() if isinstance(value, MetricWrapperBase)]
    return {exposed_name(metric): metric for metric in declared}


def exposed_name(metric: MetricWrapperBase) -> str:
    return metric._name + ("_total" if isinstance(metric, prometheus_client.Counter) else "")


def test_every_metric_is_documented_and_no_other() -> None:
    assert set(documented_code("docs/metrics.md")) == set(declared_metrics())


def test_documented_labels_are_the_labels() -> None:
    documented = documented_code("docs/metrics.md")
    for name, metric in declared_metrics().items():
        assert set(re.findall(r"`(\w+)`", documented[name][2])) == set(metric._labelnames), name


@cache
def served_routes() -> frozenset[str]:
    """Those of the OpenAPI document, and the console's, which that leaves out."""
    described = create_app(Settings()).openapi()["paths"].items()
    found = {f"{method.upper()} {path}" for path, operations in described for method in operations}
    console = [route for route in views.router.routes if isinstance(route, APIRoute)]
    return frozenset(found | {f"{method} {route.path}" for route in console for method in route.methods})


def test_every_route_is_documented_and_no_other() -> None:
    assert set(documented_code("docs/api.md")) == served_routes()


def commands_of(group: Group, prefix: str = "") -> set[str]:
    """Every command that `segue` has, with those of its groups: `import movielens`."""
    found: set[str] = set()
    for name, command in group.commands.items():
        found.add(f"{prefix}{name}")
        if hasattr(command, "commands"):
            found |= commands_of(command, f"{prefix}{name} ")  # type: ignore[arg-type]
    return found


@cache
def known_commands() -> frozenset[str]:
    return frozenset(commands_of(typer.main.get_command(cli.app)))  # type: ignore[arg-type]


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", text_of("Makefile"), re.MULTILINE))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_documents_name_only_commands_that_exist(path: Path) -> None:
    for block in CODE.findall(path.read_text("utf-8")):
        for name in re.findall(r"(?:^|[`$\s])make ([a-z]+)(?=[`\s]|$)", block):
            assert name in make_targets(), f"make {name}"
        for words in re.findall(r"(?:^|[`$/\s])segue ([a-z]+(?: [a-z]+)?)(?=[`\s,.;:/)|]|$)", block):
            assert words in known_commands() or words.split()[0] in known_commands(), f"segue {words}"


def test_the_readme_shows_every_command() -> None:
    groups = {command.split()[0] for command in known_commands() if " " in command}
    shown = {command for command in known_commands() if f"segue {command}" in text_of("README.md")}

    assert known_commands() - groups - shown == set()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_relative_links_lead_somewhere(path: Path) -> None:
    prose = CODE.sub("", path.read_text("utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = unquote(target).partition("#")
        aim = (path.parent / file).resolve() if file else path
        assert aim.exists(), target
        assert aim.is_relative_to(ROOT), f"{target} leads out of the project"
        if anchor:
            assert anchor in anchors(aim), f"{target}: no such heading"


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_decisions_are_numbered_one_after_the_other() -> None:
    numbers = [int(path.name[:4]) for path in sorted((ROOT / "docs/decisions").glob("*.md"))]

    assert numbers == list(range(1, len(numbers) + 1))


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_file_names_a_place_on_somebodys_machine() -> None:
    """Neither a developer's folders nor the package index that one of them happens to use."""
    places = re.compile(
        "|".join(
            (
                r"(?<![\w.])/(?:wor" "k|roo" r"t|hom" r"e/\w+)/",
                r"\b(?:index-ur" r"l|find-link" r"s)\s*=",
                r"\b(?:py" r"pi|pythonhos" r"ted)\.(?:org|io)\b",
            )
        )
    )
    for path in tracked_files():
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            assert not places.search(line), f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}"
