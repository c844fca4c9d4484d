"""A Postgres that is away is one line, not a traceback."""

from pathlib import Path

import pytest

from app.cli.surroundings import opened
from app.errors import SegueError


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, redis_url: str, tmp_path: Path) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://segue@127.0.0.1:1/nowhere")
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("SEGUE_DATA_DIR", str(tmp_path))


@pytest.mark.usefixtures("nowhere")
def test_a_command_says_at_once_that_postgres_is_away() -> None:
    with pytest.raises(SegueError, match=r"DATABASE_URL.*refused"), opened():
        pass


@pytest.mark.usefixtures("nowhere")
def test_a_service_waits_says_so_and_gives_up_in_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SegueError, match=r"DATABASE_URL.*refused"), opened(patience_seconds=1.0):
        pass
    assert "waiting for Postgres" in capsys.readouterr().err
