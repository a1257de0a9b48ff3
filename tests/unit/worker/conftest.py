"""A migrated database of each kind, and settings with a folder of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from elder_service.settings import Settings
from tests.unit.elder_service.conftest import database_url, sessions

__all__ = ["database_url", "sessions", "settings"]  # fixtures are found by name


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Everything as by default but the folder, and no waiting before another attempt."""
    return Settings(data_dir=tmp_path / "data", retry_delay_seconds=0)
