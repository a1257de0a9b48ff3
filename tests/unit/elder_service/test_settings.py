from __future__ import annotations

from pathlib import Path

import pytest

from elder_service.errors import InvalidSettings
from elder_service.settings import EnvironmentName, Settings

PRODUCTION = {
    "environment": EnvironmentName.PRODUCTION,
    "database_url": "postgresql://db/elder",
    "broker_url": "redis://redis",
    "secret_key": "x" * 32,
}


@pytest.mark.parametrize("missing", ["database_url", "broker_url", "secret_key"])
def test_production_needs_its_settings(missing: str) -> None:
    given = {name: value for name, value in PRODUCTION.items() if name != missing}
    with pytest.raises(InvalidSettings, match=f"ELDER_{missing.upper()}"):
        Settings(**given)
    Settings(**PRODUCTION)


def test_a_heartbeat_must_fit_into_the_lease() -> None:
    with pytest.raises(InvalidSettings, match="ELDER_HEARTBEAT_SECONDS is 40"):
        Settings(lease_seconds=60, heartbeat_seconds=40)


def test_embedded_lives_in_the_data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELDER_MODEL_ROOTS", "/a, /b")
    settings = Settings(data_dir=tmp_path)
    assert settings.effective_database_url == f"sqlite:///{tmp_path}/elder.db"
    assert settings.sources.model_roots == (Path("/a"), Path("/b"))


def test_a_secret_is_not_shown() -> None:
    assert "hidden" not in repr(Settings(secret_key="hidden" * 8))
