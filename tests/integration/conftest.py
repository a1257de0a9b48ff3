from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration.service import Service, running
from tests.servers import fresh_database
from tests.tiny import save_tiny_llama


@pytest.fixture(scope="session")
def model_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models: `tiny-llama`, and `broken-llama` with a NaN in it."""
    root = tmp_path_factory.mktemp("model-root")
    save_tiny_llama(root / "tiny-llama")
    save_tiny_llama(root / "broken-llama", broken=True)
    return root


@pytest.fixture(scope="module", params=["embedded", "production"])
def shared_service(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, model_root: Path
) -> Iterator[Service]:
    """A service on SQLite and folders, or on Postgres and Redis. It starts slowly, so a module's tests share it."""
    folder = tmp_path_factory.mktemp(request.param)
    environment = {"ELDER_DATA_DIR": str(folder / "data"), "ELDER_MODEL_ROOTS": str(model_root)}
    with ExitStack() as stack:
        if request.param == "production":
            server: str = request.getfixturevalue("postgres_url")
            name = f"elder_service_{uuid.uuid4().hex[:12]}"
            environment |= {
                "ELDER_ENVIRONMENT": "production",
                "ELDER_DATABASE_URL": stack.enter_context(fresh_database(server, name)),
                "ELDER_BROKER_URL": request.getfixturevalue("redis_url"),
                "ELDER_SECRET_KEY": "s" * 40,
            }
        yield stack.enter_context(running(folder / "logs", environment))


@pytest.fixture
def service(shared_service: Service) -> Iterator[Service]:
    """The shared service without a job of an earlier test."""
    yield shared_service
    shared_service.cancel_all()
