"""The wheel, the image and the compose file: what they promise, and the steps they walk, in a clean environment.

No container engine is needed: the build stage's files are built here, and the commands run as the image would run them.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import venv
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import typer.main
import yaml

from app import cli
from app.settings import Settings
from tests.service.sample import FILMS, write_sample

# On one of xdist's workers, so that the wheel is built once.
pytestmark = pytest.mark.xdist_group("packaging")

ROOT = Path(__file__).resolve().parents[1]
PACKAGED = ("app", "models", "migrations", "demo")
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
OURS = {name: service for name, service in COMPOSE["services"].items() if "build" in service}


class Instruction(NamedTuple):
    """A line of the Dockerfile, continuations joined."""

    word: str
    value: str

    def words(self) -> list[str]:
        """Of the JSON form, which alone runs without a shell."""
        listed: list[str] = json.loads(self.value[self.value.index("[") :])
        return listed


def stages() -> list[list[Instruction]]:
    """The instructions of each stage, FROM first."""
    text = (ROOT / "Dockerfile").read_text("utf-8")
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#")).replace("\\\n", " ")
    found: list[list[Instruction]] = []
    for line in filter(str.strip, lines.splitlines()):
        instruction = Instruction(*line.strip().split(maxsplit=1))
        if instruction.word == "FROM":
            found.append([])
        if found:
            found[-1].append(instruction)
    return found


def only(word: str) -> Instruction:
    """The last stage's one instruction of this word."""
    (found,) = [instruction for instruction in stages()[-1] if instruction.word == word]
    return found


def copied(instructions: list[Instruction]) -> Iterator[tuple[list[str], str]]:
    """Sources and target of each COPY from the build context."""
    for instruction in instructions:
        if instruction.word == "COPY" and "--from" not in instruction.value:
            *sources, target = instruction.value.split()
            yield sources, target


def accepts(arguments: list[str]) -> None:
    """Parses a command line of `segue` without running it. Raises for an unknown command or option."""
    command: Any = typer.main.get_command(cli.app)
    while hasattr(command, "commands"):
        command = command.commands[arguments[0]]
        arguments = arguments[1:]
    command.make_context("segue", list(arguments))


def settings_names() -> set[str]:
    return {str(field.validation_alias or f"SEGUE_{name}".upper()) for name, field in Settings.model_fields.items()}


class TestImage:
    def test_it_is_built_in_one_stage_and_runs_in_another(self) -> None:
        build, *_, final = stages()

        assert build is not final
        assert any("--from=build" in instruction.value for instruction in final if instruction.word == "COPY")
        assert not any("pip install" in instruction.value for instruction in final)

    def test_its_base_is_named_by_version(self) -> None:
        for stage in stages():
            assert re.match(r"python:\$\{PYTHON\}-slim-\w+( AS \w+)?$", stage[0].value)
        assert re.search(r"^ARG PYTHON=3\.\d+$", (ROOT / "Dockerfile").read_text("utf-8"), re.MULTILINE)

    def test_it_does_not_run_as_root(self) -> None:
        words = [instruction.word for instruction in stages()[-1]]

        assert only("USER").value not in ("root", "0")
        assert "RUN" not in words[words.index("USER") :]

    def test_docker_can_stop_it_and_ask_how_it_is(self) -> None:
        assert only("STOPSIGNAL").value == "SIGTERM"
        assert only("HEALTHCHECK").words()[0] == "python"
        assert "/healthz" in only("HEALTHCHECK").value

    def test_its_default_command_is_one_of_segue(self) -> None:
        assert only("ENTRYPOINT").words() == ["segue"]
        accepts(only("CMD").words())

    def test_it_names_only_settings_that_exist(self) -> None:
        named = set(re.findall(r"\b(SEGUE_\w+|DATABASE_URL|REDIS_URL)=", only("ENV").value))

        assert named
        assert named <= settings_names()

    def test_everything_that_it_copies_exists_and_is_not_ignored(self) -> None:
        lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
        kept = [line[1:] for line in lines if line.startswith("!")]
        sources = [source for stage in stages() for many, _ in copied(stage) for source in many]

        assert "*" in lines
        for source in sources:
            assert (ROOT / source).exists(), source
            assert any(fnmatch(source, pattern) or source.startswith(f"{pattern}/") for pattern in kept), source
        assert set(PACKAGED) <= set(sources)

    def test_it_has_the_library_that_implicit_expects_of_the_system(self) -> None:
        assert any("libgomp1" in instruction.value for instruction in stages()[-1] if instruction.word == "RUN")


class TestCompose:
    def test_it_has_every_part(self) -> None:
        assert set(OURS) == {"app", "worker", "migrate", "train"}
        assert set(COMPOSE["services"]) == {*OURS, "postgres", "redis"}

    @pytest.mark.parametrize("name", sorted(OURS))
    def test_commands_are_commands_of_segue(self, name: str) -> None:
        accepts(COMPOSE["services"][name]["command"])

    @pytest.mark.parametrize("name", sorted(OURS))
    def test_variables_are_settings(self, name: str) -> None:
        assert set(COMPOSE["services"][name]["environment"]) <= settings_names()

    @pytest.mark.parametrize("name", sorted(COMPOSE["services"]))
    def test_secrets_come_from_the_environment(self, name: str) -> None:
        environment = COMPOSE["services"][name].get("environment", {})
        for key, value in environment.items():
            if key.endswith(("_KEY", "PASSWORD")):
                assert re.fullmatch(r"\$\{\w+:[?-].*\}", value), f"{key} is written down"
        assert "SEGUE_ADMIN_KEY" not in environment or ":?" in environment["SEGUE_ADMIN_KEY"], "it must not be optional"

    @pytest.mark.parametrize("name", sorted(COMPOSE["services"]))
    def test_nothing_gains_privileges_and_images_have_a_version(self, name: str) -> None:
        service = COMPOSE["services"][name]

        assert "no-new-privileges:true" in service["security_opt"]
        assert re.search(r":\d[\w.]*$", service["image"])
        assert name not in OURS or service["read_only"] is True
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))

    def test_each_waits_for_what_it_needs(self) -> None:
        services = COMPOSE["services"]

        assert all("test" in services[name]["healthcheck"] for name in ("postgres", "redis"))
        assert services["migrate"]["depends_on"] == {
            "postgres": {"condition": "service_healthy"},
            "redis": {"condition": "service_healthy"},
        }
        for name in ("app", "worker", "train"):
            assert services[name]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}

    def test_what_must_last_lies_on_named_volumes(self) -> None:
        volumes = {name: service["volumes"][0].split(":") for name, service in COMPOSE["services"].items()}

        assert {volume for volume, _ in volumes.values()} == set(COMPOSE["volumes"])
        assert all(volumes[name][1] == COMPOSE["services"][name]["environment"]["SEGUE_DATA_DIR"] for name in OURS)

    def test_stopping_leaves_time_to_answer(self) -> None:
        grace = int(COMPOSE["services"]["app"]["stop_grace_period"].removesuffix("s"))

        assert grace > Settings.model_fields["drain_seconds"].default

    def test_the_app_answers_where_its_port_is_published(self) -> None:
        app = COMPOSE["services"]["app"]
        command = app["command"]

        assert command[command.index("--host") + 1] == "0.0.0.0"  # noqa: S104 - inside a container
        assert app["ports"] == [f"127.0.0.1:8000:{command[command.index('--port') + 1]}"]


def build_wheel(context: Path, into: Path) -> Path:
    """What `pip install .` would install, built without fetching anything."""
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", into, context)
    (wheel,) = into.glob("*.whl")
    return wheel


def run(*command: str | Path, **options: Any) -> str:
    """Standard output and error. Fails the test, showing both, where the command fails."""
    ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **options)
    assert ran.returncode == 0, f"{shlex.join(map(str, command))}:\n{ran.stdout[-4000:]}"
    return ran.stdout


def copy_context(to: Path, *, until_first_install: bool = False) -> Path:
    """The build stage's files, as its COPY instructions lay them out."""
    instructions = stages()[0]
    if until_first_install:
        words = [instruction.word == "RUN" and "pip install" in instruction.value for instruction in instructions]
        instructions = instructions[: words.index(True)]
    for sources, target in copied(instructions):
        for source in sources:
            if (ROOT / source).is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / source, to / target, ignore=ignored, dirs_exist_ok=True)
            else:
                (to / target).mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / source, to / target)
    return to


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    return build_wheel(copy_context(folder / "context"), folder / "built")


def test_everything_travels_in_the_wheel(wheel: Path) -> None:
    files = [path for folder in PACKAGED for path in (ROOT / folder).rglob("*") if path.is_file()]
    expected = {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}

    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())

    assert expected - names == set()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == set(PACKAGED)


def test_the_layer_of_dependencies_is_built_without_code(tmp_path: Path) -> None:
    context = copy_context(tmp_path / "context", until_first_install=True)

    with zipfile.ZipFile(build_wheel(context, tmp_path / "built")) as archive:
        assert not any(name.endswith(".py") for name in archive.namelist())


class CleanPlace(NamedTuple):
    """An environment that has Segue as its users have it, an empty folder to be in, and what is set there."""

    bin: Path
    folder: Path
    environment: Mapping[str, str]

    def run(self, *command: str | Path) -> str:
        return run(self.bin / str(command[0]), *command[1:], cwd=self.folder, env=self.environment)


@pytest.fixture(scope="module")
def clean_place(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> CleanPlace:
    """The wheel alone in a new environment; its dependencies are found where the tests have theirs."""
    folder = tmp_path_factory.mktemp("clean")
    (folder / "home").mkdir()
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    python = folder / "venv" / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", "utf-8")
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder / "home"), "SEGUE_DATA_DIR": str(folder / "var")}
    return CleanPlace(python.parent, folder / "home", environment)


@pytest.mark.slow
def test_what_is_installed_migrates_and_brings_its_data(clean_place: CleanPlace) -> None:
    """Where nothing of the repository is near."""
    found = clean_place.run("python", "-c", "import app, migrations, demo; print(app.__file__, *demo.__path__)").split()
    assert all(Path(place).is_relative_to(clean_place.bin.parent) for place in found), found

    clean_place.run("segue", "migrate")
    imported = clean_place.run("segue", "import", "movietweetings", Path(found[1]) / "movietweetings-100k")

    assert "10,506 stored" in imported
    assert "100,000 stored" in imported


@pytest.mark.slow
def test_what_is_installed_trains_and_serves(clean_place: CleanPlace, tmp_path: Path) -> None:
    """The steps of the compose file, on a few users of the data: a training is the longest of them by far."""
    place = clean_place._replace(environment={**clean_place.environment, "SEGUE_DATA_DIR": str(tmp_path / "var")})

    place.run("segue", "migrate")
    place.run("segue", "import", "movietweetings", write_sample(tmp_path / "sample", n_users=60), "--shift-to-now")
    place.run("segue", *COMPOSE["services"]["train"]["command"])
    with served(place) as url:
        ready = httpx.get(f"{url}/readyz", timeout=60).raise_for_status().json()
        answer = httpx.get(f"{url}/recommend", params={"user_id": "newcomer"}, timeout=60).raise_for_status().json()
        run(sys.executable, *(word.replace("http://127.0.0.1:8000", url) for word in only("HEALTHCHECK").words()[1:]))

    assert ready["degraded"] == {}
    assert ready["items"] == FILMS
    assert answer["release"] == ready["release"] is not None
    assert answer["route"] == "new"
    assert len(answer["items"]) == 10


@pytest.mark.slow
def test_an_open_door_is_refused(clean_place: CleanPlace) -> None:
    """As the image's own command does without a key."""
    command = [clean_place.bin / "segue", *only("CMD").words()]
    ran = subprocess.run(
        command, cwd=clean_place.folder, env=clean_place.environment, capture_output=True, text=True, check=False
    )

    assert ran.returncode == 1
    assert "SEGUE_ADMIN_KEY" in ran.stderr


@contextmanager
def served(place: CleanPlace) -> Iterator[str]:
    """The address of a running `segue serve`, ended by the image's STOPSIGNAL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [place.bin / "segue", "serve", "--port", str(port), "--no-worker"]
    log = place.folder / "serve.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(command, cwd=place.folder, env=place.environment, stdout=output, stderr=output) as process,
    ):
        try:
            wait_until_healthy(f"http://127.0.0.1:{port}", process, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.send_signal(signal.Signals[only("STOPSIGNAL").value])
            process.wait(60)


def wait_until_healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/healthz").is_success:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    pytest.fail(f"not healthy: {log.read_text('utf-8', 'replace')[-4000:]}")
