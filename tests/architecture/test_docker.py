"""The images without a Docker engine: linted, and their install commands run in clean environments."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.dockerfile import ROOT, Player, read_stages

PROGRAMS = Path(sys.executable).parent
API_WORKS = """
import elder_client.cli, elder_core.hub_outline, worker.supervisor
from importlib.resources import files
from api.main import create_app
from elder_core.inspection import Sources, available_models

assert available_models(Sources()) == ["builtin:manuals-16l"]
assert "/v1/jobs" in create_app().openapi()["paths"]
assert files("api").joinpath("dashboard/static/htmx.min.js").is_file()
assert files("api").joinpath("dashboard/templates/base.html").is_file()
"""


def run(*command: str | Path, cwd: Path = ROOT, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_dockerfile_passes_its_linter() -> None:
    run(PROGRAMS / "hadolint", "Dockerfile")


def test_compose_file_fits_its_schema() -> None:
    run(PROGRAMS / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml")


def test_compose_builds_stages_that_exist_and_waits_for_services_that_exist() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))["services"]
    targets = {service["build"]["target"] for service in services.values() if "build" in service}
    waits = {name for service in services.values() for name in service.get("depends_on", {})}
    assert targets == {"api", "worker"} <= set(read_stages())
    assert waits <= set(services)


def test_compose_variables_are_explained() -> None:
    needed = set(re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yml").read_text("utf-8")))
    named = set(re.findall(r"^#?(\w+)=", (ROOT / ".env.example").read_text("utf-8"), re.MULTILINE))
    assert needed - {"ELDER_LOG_LEVEL"} == named


def test_the_context_holds_what_is_copied() -> None:
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    context = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copies = [rest for stage in read_stages().values() for name, rest in stage.instructions if name == "COPY"]
    sources = {source for rest in copies if "--from" not in rest for source in rest.split()[:-1]}
    assert sources == context


def test_every_version_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = {line for line in lines if line and not line.startswith("#")}
    assert [pin for pin in pins if not re.fullmatch(r"[\w.-]+==[\w.]+", pin)] == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    extras = project["project"]["optional-dependencies"].values()
    wanted = [
        *project["project"]["dependencies"],
        *project["build-system"]["requires"],
        *(r for e in extras for r in e),
    ]
    names = {re.split(r"[\[=<>~!]", line)[0].lower().replace("_", "-") for line in wanted}
    assert names <= {pin.split("==")[0].lower().replace("_", "-") for pin in pins}
    assert "torch==2.13.0" in pins


@pytest.fixture(scope="module")
def player(tmp_path_factory: pytest.TempPathFactory) -> Player:
    return Player(tmp_path_factory.mktemp("image"))


@pytest.mark.timeout(900)
def test_api_image_installs_without_torch_and_serves(player: Player, tmp_path: Path) -> None:
    player.play("api")
    python = player.root / "venv" / "bin" / "python"
    installed = run(python, "-m", "pip", "list", "--format=freeze", cwd=tmp_path)
    assert not re.search(r"^(torch|transformers|numpy)==", installed, re.MULTILINE)
    environment = {"PATH": "/usr/bin:/bin", "ELDER_BUILTIN_ROOT": str(player.root / "builtin")}
    run(python.with_name("elder-server"), "migrate", cwd=tmp_path, environment=environment)
    run(python, "-c", API_WORKS, cwd=tmp_path, environment=environment)


@pytest.mark.timeout(900)
def test_worker_image_resolves(player: Player) -> None:
    """The short cut of the test below: every package is found at its version, and none contradicts another."""
    player.play("worker", resolve_only=True)


@pytest.mark.images
@pytest.mark.timeout(1800)
def test_worker_image_installs_and_imports_the_method(tmp_path: Path) -> None:
    player = Player(tmp_path / "image")
    player.play("worker")
    code = "import torch, worker.runner; assert torch.__version__.split('+')[0] == '2.13.0'"
    run(player.root / "venv" / "bin" / "python", "-c", code, cwd=tmp_path, environment={"PATH": "/usr/bin:/bin"})
