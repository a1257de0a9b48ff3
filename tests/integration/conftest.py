from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.service import Service, running
from tests.tiny import save_tiny_llama


@pytest.fixture(scope="session")
def model_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models with `tiny-llama` in it."""
    root = tmp_path_factory.mktemp("model-root")
    save_tiny_llama(root / "tiny-llama")
    return root


@pytest.fixture(params=["embedded", "production"])
def service(request: pytest.FixtureRequest, tmp_path: Path, model_root: Path) -> Iterator[Service]:
    """A service without a worker: on SQLite and folders, and on Postgres and Redis."""
    environment = {"ELDER_DATA_DIR": str(tmp_path / "data"), "ELDER_MODEL_ROOTS": str(model_root)}
    if request.param == "production":
        environment |= {
            "ELDER_ENVIRONMENT": "production",
            "ELDER_DATABASE_URL": request.getfixturevalue("postgres_database"),
            "ELDER_BROKER_URL": request.getfixturevalue("redis_url"),
            "ELDER_SECRET_KEY": "s" * 40,
        }
    with running(tmp_path / "logs", environment) as service:
        yield service
