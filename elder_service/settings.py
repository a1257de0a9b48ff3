"""Every setting of the service, read from the environment (`ELDER_…`) or a `.env` file."""

from __future__ import annotations

from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from elder_core.inspection import Sources
from elder_service.errors import InvalidSettings
from elder_service.secret import stored_secret

SECRET_MIN_LENGTH = 32
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
BROKER_SCHEMES = ("redis", "rediss")
CONFIDENTIAL = frozenset({"secret_key", "database_url", "broker_url"})
"""Settings that may hold a password, and are never printed."""


class EnvironmentName(StrEnum):
    EMBEDDED = "embedded"
    PRODUCTION = "production"


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="ELDER_", env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True
    )

    environment: EnvironmentName = Field(
        default=EnvironmentName.EMBEDDED,
        description="`embedded`: SQLite and a file-system broker below data_dir. `production`: both URLs and a secret "
        "must be given.",
    )
    data_dir: Path = Field(
        default=Path("data"), description="Artefacts, job scratch space and, when embedded, database and broker."
    )
    database_url: str | None = Field(
        default=None, description="SQLAlchemy URL, `postgresql://…` or `sqlite:///…`; default: SQLite in data_dir."
    )
    broker_url: str | None = Field(
        default=None, description="Celery broker, `redis://…`; default when embedded: folders in data_dir."
    )
    secret_key: SecretStr | None = Field(
        default=None,
        description=f"Signs download links; at least {SECRET_MIN_LENGTH} characters in production. Default when "
        "embedded: made at the first start and kept in data_dir/secret.",
    )
    public_url: str | None = Field(
        default=None, description="Address that callers use, for links; default: that of each request."
    )
    model_roots: Annotated[tuple[Path, ...], NoDecode] = Field(
        default=(), description="Folders below which `local:NAME` models are found, separated by commas."
    )
    text_roots: Annotated[tuple[Path, ...], NoDecode] = Field(
        default=(), description="Folders below which `local:NAME` texts are found, separated by commas."
    )
    hub_cache: Path | None = Field(default=None, description="Where hub models are downloaded to; default: the hub's.")
    hub_look_seconds: float = Field(
        default=5,
        ge=0,
        le=20,
        description="Longest that a submission waits for the hub to show a hub model's config, file names and headers, "
        "at most 20; what is not seen by then is left to the worker. 0: never looks.",
    )
    device: str = Field(
        default="auto", description="`auto` (a free GPU if there are GPUs), `cpu`, `cuda` (a free GPU) or `cuda:N`."
    )

    lease_seconds: float = Field(default=60, gt=0, description="A worker silent for so long has lost its job.")
    heartbeat_seconds: float = Field(default=12, gt=0, description="Between renewals of the lease.")
    cancel_poll_seconds: float = Field(default=1, gt=0, description="Between looks for a request to cancel.")
    claim_seconds: float = Field(default=5, gt=0, description="Between a worker's own looks for a job, without a hint.")
    maintenance_seconds: float = Field(default=15, gt=0, description="Between looks for expired leases and jobs.")
    max_attempts: int = Field(default=3, ge=1, description="Attempts of a job before a lost worker fails it.")
    max_running_per_owner: int | None = Field(
        default=None, ge=1, description="Most jobs of one owner that run at the same time; default: no limit."
    )
    memory_bytes: int | None = Field(
        default=None, ge=1, description="Memory that a worker without GPU has for a job; default: the machine's."
    )
    retry_delay_seconds: float = Field(
        default=5, ge=0, description="Before the second attempt; doubles with each further one."
    )
    cancel_grace_seconds: float = Field(
        default=1.5, ge=0, description="Between SIGTERM and SIGKILL to the process of a cancelled job."
    )
    journal_seconds: float = Field(
        default=60,
        ge=0,
        description="Between writings of where a job stands, so that another attempt goes on from there; more where "
        "writing takes more than a fortieth of it.",
    )
    drain_seconds: float = Field(default=6, gt=0, description="A stopping worker's time to give its job back.")
    download_link_seconds: int = Field(default=3600, ge=1, description="Life of a signed download link.")
    max_body_bytes: int = Field(default=1_000_000, ge=1000, description="Largest request body.")
    max_text_bytes: int = Field(
        default=1_000_000_000, ge=1, description="Largest text file; a worker reads the whole of it into memory."
    )
    log_level: str = Field(default="INFO", description="DEBUG, INFO, WARNING or ERROR.")

    @field_validator("model_roots", "text_roots", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().resolve()

    @field_validator("database_url")
    @classmethod
    def _known_database(cls, value: str | None) -> str | None:
        try:
            backend = make_url(value).get_backend_name() if value is not None else "sqlite"
        except ArgumentError as error:
            raise ValueError("it is no URL such as postgresql://user:password@host:5432/name") from error
        if backend not in {"postgresql", "sqlite"}:
            raise ValueError(f"{backend} is not supported; use postgresql:// or sqlite:///")
        return value

    @field_validator("broker_url")
    @classmethod
    def _known_broker(cls, value: str | None) -> str | None:
        scheme, separator, _ = (value or f"{BROKER_SCHEMES[0]}://").partition("://")
        if scheme not in BROKER_SCHEMES or not separator:
            known = " or ".join(f"{name}://…" for name in BROKER_SCHEMES)
            raise ValueError(f"{scheme if separator else 'what is no URL'} is not supported; use {known}")
        return value

    @field_validator("log_level")
    @classmethod
    def _known_level(cls, value: str) -> str:
        if value.upper() not in LOG_LEVELS:
            raise ValueError(f"it must be one of {', '.join(LOG_LEVELS)}")
        return value.upper()

    @model_validator(mode="after")
    def _check(self) -> Settings:
        if self.heartbeat_seconds * 2 > self.lease_seconds:
            raise InvalidSettings(
                f"ELDER_HEARTBEAT_SECONDS is {self.heartbeat_seconds:g}; it must be at most half of "
                f"ELDER_LEASE_SECONDS ({self.lease_seconds:g}), or one late heartbeat loses the job."
            )
        if self.environment is EnvironmentName.PRODUCTION:
            self._check_production()
        return self

    def _check_production(self) -> None:
        for name in ("database_url", "broker_url"):
            if getattr(self, name) is None:
                raise InvalidSettings(f"ELDER_{name.upper()} must be set in production.")
        if len(self.secret_key or "") < SECRET_MIN_LENGTH:
            raise InvalidSettings(
                f"ELDER_SECRET_KEY must be a secret of {SECRET_MIN_LENGTH} characters or more in production; "
                "make one with: openssl rand -hex 32"
            )

    @cached_property
    def effective_database_url(self) -> str:
        return self.database_url or f"sqlite:///{self.data_dir / 'elder.db'}"

    @cached_property
    def signing_key(self) -> SecretStr:
        """The key of download links: the one that is set, or else, embedded, the one kept in data_dir."""
        return self.secret_key or stored_secret(self.data_dir / "secret")

    @cached_property
    def sources(self) -> Sources:
        return Sources(
            model_roots=self.model_roots,
            text_roots=self.text_roots,
            max_text_bytes=self.max_text_bytes,
            hub_cache=self.hub_cache,
            token_cache=self.token_cache_dir,
        )

    @property
    def artifacts_dir(self) -> Path:
        return self.data_dir / "artifacts"

    @property
    def scratch_dir(self) -> Path:
        return self.data_dir / "scratch"

    @property
    def token_cache_dir(self) -> Path:
        return self.data_dir / "cache" / "tokens"

    @property
    def broker_dir(self) -> Path:
        return self.data_dir / "broker"


def load_settings(**given: Any) -> Settings:
    """The settings of this process; those `given` go before the environment.

    Raises:
        InvalidSettings: a value is malformed, or contradicts another.
    """
    try:
        return Settings(**given)
    except ValidationError as error:
        raise InvalidSettings(" ".join(map(_sentence, error.errors(include_url=False)))) from None


def _sentence(found: ErrorDetails) -> str:
    """What is wrong with one setting, and what the setting is for."""
    name = str(found["loc"][0])
    value = "as it is set" if name in CONFIDENTIAL else repr(str(found["input"]))
    reason = found["msg"].removeprefix("Value error, ").rstrip(".")
    return (
        f"ELDER_{name.upper()} cannot be {value}: {reason[:1].lower()}{reason[1:]}. It is for: "
        f"{(Settings.model_fields[name].description or name).rstrip('.')}. Mend it in the environment, in .env or on "
        "the command line."
    )
