"""The database's schema version: migrate to it, or refuse to run on another."""

from __future__ import annotations

from importlib import resources

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine

from elder_service.errors import SchemaMismatch


def _config(engine: Engine) -> Config:
    config = Config()
    config.set_main_option("script_location", str(resources.files("migrations")))
    config.set_main_option("path_separator", "os")
    config.attributes["engine"] = engine
    return config


def migrate(engine: Engine, revision: str = "head") -> None:
    command.upgrade(_config(engine), revision)


def downgrade(engine: Engine, revision: str) -> None:
    command.downgrade(_config(engine), revision)


def expected_head() -> str:
    config = Config()
    config.set_main_option("script_location", str(resources.files("migrations")))
    config.set_main_option("path_separator", "os")
    head = ScriptDirectory.from_config(config).get_current_head()
    assert head is not None
    return head


def check_head(engine: Engine) -> None:
    """Raise SchemaMismatch unless the database is exactly at the migration that this code was written for."""
    with engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
    head = expected_head()
    if current != head:
        raise SchemaMismatch(
            f"The database is at migration {current or 'none'}, this version of the service needs {head}. "
            "Run `elder-server migrate` with this version, or start the version that fits the database."
        )
