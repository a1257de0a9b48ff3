from __future__ import annotations

from pathlib import Path

import pytest

from elder_service.errors import InvalidSettings
from elder_service.settings import CONFIDENTIAL, EnvironmentName, Settings, load_settings

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


def test_a_malformed_value_is_told_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELDER_MAX_ATTEMPTS", "0")
    monkeypatch.setenv("ELDER_LOG_LEVEL", "loud")
    with pytest.raises(InvalidSettings) as caught:
        load_settings()
    assert caught.value.message == (
        "ELDER_MAX_ATTEMPTS cannot be '0': input should be greater than or equal to 1. It is for: Attempts of a job "
        "before a lost worker fails it. Mend it in the environment, in .env or on the command line. "
        "ELDER_LOG_LEVEL cannot be 'loud': it must be one of DEBUG, INFO, WARNING, ERROR. It is for: DEBUG, INFO, "
        "WARNING or ERROR. Mend it in the environment, in .env or on the command line."
    )


@pytest.mark.parametrize(
    ("url", "reason"),
    [("mysql://elder:pass-word@db/elder", "mysql is not supported"), ("elder:pass-word@db", "it is no URL such as")],
)
def test_a_password_is_not_told(url: str, reason: str) -> None:
    with pytest.raises(InvalidSettings, match=f"ELDER_DATABASE_URL cannot be as it is set: {reason}") as caught:
        load_settings(database_url=url)
    assert "pass-word" not in caught.value.message


def test_confidential_settings_are_all_that_hold_secrets() -> None:
    assert {name for name, field in Settings.model_fields.items() if "Secret" in str(field.annotation)} <= CONFIDENTIAL


def test_an_empty_value_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """As compose files and .env templates write it."""
    monkeypatch.setenv("ELDER_PUBLIC_URL", "")
    monkeypatch.setenv("ELDER_LEASE_SECONDS", "")
    settings = load_settings()
    assert settings.public_url is None
    assert settings.lease_seconds == 60


def test_the_log_level_may_be_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELDER_LOG_LEVEL", "debug")
    assert load_settings().log_level == "DEBUG"


@pytest.mark.parametrize("url", ["redsi://redis:6379/0", "amqp://rabbit", "redis:6379"])
def test_a_broker_that_nobody_can_reach_is_refused_at_the_start(url: str) -> None:
    with pytest.raises(InvalidSettings, match=r"ELDER_BROKER_URL .* is not supported; use redis://… or rediss://…"):
        load_settings(broker_url=url)
