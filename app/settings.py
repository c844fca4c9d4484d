"""The only reader of the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

FEEDBACK_KINDS = (
    "impression", "view", "like", "dislike", "rating", "listen", "click", "share", "bookmark", "purchase",
    "skip", "hide",
)  # fmt: skip
DEFAULT_WEIGHTS = {
    "impression": 0.0, "view": 0.3, "click": 0.5, "like": 1.0, "bookmark": 1.0, "share": 1.2, "purchase": 1.5,
    "rating": 1.0, "listen": 1.0, "dislike": -1.0, "skip": -0.5, "hide": -1.0,
}  # fmt: skip


class Settings(BaseSettings):
    """Every setting with its default; docs/settings.md says the same in a table, and a test compares them."""

    model_config = SettingsConfigDict(env_prefix="SEGUE_", extra="ignore", frozen=True)

    database_url: str | None = Field(
        default=None, validation_alias="DATABASE_URL", description="Postgres; unset: the embedded server"
    )
    redis_url: str | None = Field(
        default=None, validation_alias="REDIS_URL", description="Redis or Valkey; unset: the embedded server"
    )
    data_dir: Path = Field(default=Path("var"), description="releases and the embedded servers' data")

    admin_key: SecretStr | None = Field(default=None, description="first API key of scope admin")
    write_key: SecretStr | None = Field(default=None, description="first API key of scope write")
    read_key: SecretStr | None = Field(default=None, description="first API key of scope read")

    auto_create: bool = Field(default=True, description="events create unknown users and items as bare rows")
    feedback_weights: dict[str, float] = Field(
        default=DEFAULT_WEIGHTS, description="weight of each kind of event in training and live counts (JSON)"
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="origins that browsers may call from, comma-separated"
    )
    rate_limit: float = Field(default=0, ge=0, description="requests per second, key and worker; 0: no limit")
    connections: int = Field(default=1_000, ge=1, description="open connections per worker; beyond it 503")
    client_seconds: float = Field(default=20, gt=0, description="longest wait for a slow client")
    max_body_bytes: int = Field(default=8 * 1024 * 1024, ge=1024, description="larger bodies get 413")

    history_length: int = Field(default=200, ge=1, description="newest interactions kept per user in Redis")
    seen_limit: int = Field(default=5_000, ge=1, description="newest seen items kept per user in Redis")
    view_ttl_seconds: int = Field(default=86_400, ge=1, description="life of a user's view in Redis")
    cursor_ttl_seconds: int = Field(default=1_800, ge=1, description="how long a next_cursor is good for")
    refresh_seconds: float = Field(
        default=0.4, gt=0, le=1, description="how often a worker looks for new events, items, keys and releases"
    )
    live_checkpoint_seconds: float = Field(
        default=10, gt=0, description="how often the live signals are stored for workers that start"
    )
    ingest_queue: int = Field(default=10_000, ge=1, description="events that may wait; beyond it 503")
    impressions_queue: int = Field(default=10_000, ge=1, description="slates that may wait; beyond it counted as lost")
    exposures_queue: int = Field(default=10_000, ge=1, description="exposures that may wait; beyond it counted as lost")
    explore_share: float = Field(default=0.01, ge=0, le=1, description="share of users whose slates are drawn")
    explore_temperature: float = Field(
        default=0.5, ge=0.1, le=100, description="of the draw: lower keeps more of the order"
    )
    session_timeout_seconds: int = Field(default=1_800, ge=1, description="silence that ends a listening session")
    session_length: int = Field(default=5_000, ge=1, description="tracks a session remembers, not to give them again")
    next_sampling: Literal["greedy", "softmax"] = Field(
        default="greedy", description="next tracks by expected listening: the best first, or drawn"
    )
    next_temperature: float = Field(default=0.1, ge=0.01, le=100, description="of the draw: lower keeps to the best")
    next_candidates: int = Field(default=20, ge=1, le=100, description="tracks that are ordered or drawn among")
    next_least_listening: float = Field(
        default=0.5, ge=0, le=1, description="candidates expected to be heard less are dropped"
    )
    next_switch_below: float = Field(
        default=0.7, ge=0, le=1, description="a track heard less hands over to the other recommender"
    )
    next_artist_tracks: int = Field(
        default=3, ge=0, le=100, description="fills from one artist of a dropped candidate; 0: none"
    )
    next_popular_share: float = Field(
        default=1 / 3, gt=0, le=1, description="weight of popular fills, of the lowest candidate's"
    )
    next_skip_below: float = Field(default=0.3, ge=0, le=1, description="a track heard less was skipped")
    next_skip_push: float = Field(default=0.5, ge=0, le=1, description="how far a skip pushes its neighbours down")
    next_artist_fatigue: float = Field(
        default=0.8, gt=0, le=1, description="factor for an artist, for each time in a row beyond the first"
    )
    impressions_days: int = Field(default=90, ge=0, description="how long shown pages are kept; 0: for ever")
    events_days: int = Field(default=0, ge=0, description="how long every event is kept; 0: for ever")
    audit_days: int = Field(default=0, ge=0, description="how long lines of the audit log are kept; 0: for ever")
    prune_seconds: float = Field(default=3_600, gt=0, description="how often what is older is looked for")
    redis_timeout_seconds: float = Field(default=0.25, gt=0, description="longest wait for one Redis answer")
    database_timeout_seconds: float = Field(default=10, gt=0, description="longest statement on Postgres")
    database_pool: int = Field(default=8, ge=3, description="Postgres connections per worker; two store events")
    drain_seconds: int = Field(default=10, ge=0, description="how long SIGTERM waits for open requests")
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="log level")

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("feedback_weights", mode="after")
    @classmethod
    def _known_kinds(cls, value: dict[str, float]) -> dict[str, float]:
        unknown = sorted(set(value) - set(FEEDBACK_KINDS))
        if unknown:
            raise ValueError(f"SEGUE_FEEDBACK_WEIGHTS names unknown kinds {unknown}; known: {FEEDBACK_KINDS}")
        return DEFAULT_WEIGHTS | value

    @property
    def releases_dir(self) -> Path:
        return self.data_dir / "releases"
