"""What imports what: the rules in pyproject.toml, and what they cannot see."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("api", "worker", "elder_core", "elder_service", "elder_client", "migrations")
HEAVY = ("torch", "transformers", "numpy", "safetensors", "tokenizers", "huggingface_hub")


def test_import_rules_hold() -> None:
    program = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([program, "--no-logo", "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "module", ["api.main", "api.server", "worker.app", "worker.supervisor", "elder_service.cli", "elder_client.cli"]
)
def test_torch_stays_out(module: str) -> None:
    """import-linter does not follow what a package does when it is imported; a fresh interpreter does."""
    code = f"import sys, {module}; print(*sorted(set(sys.modules) & set({HEAVY!r})))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_hub_model_is_looked_at_without_torch() -> None:
    code = f"import sys, elder_core.hub_outline; print(*sorted(set(sys.modules) & set({HEAVY!r})))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["huggingface_hub"]


def test_methods_are_listed_without_torch() -> None:
    code = "import sys; from elder_core.registry import METHODS; assert METHODS; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_packages_do_nothing_when_imported() -> None:
    found = [path for package in PACKAGES for path in (ROOT / package).rglob("__init__.py") if path.read_bytes()]
    assert found == []
