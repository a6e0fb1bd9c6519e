"""Which URLs work, and what the others are told."""

import sys

import pytest

from threadline import InvalidInputError, MissingExtraError, UnsupportedUrlError
from threadline.connect import connect
from threadline.engines.memory import MemoryEngine


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///./my_agent_data.db", "./my_agent_data.db"),
        ("sqlite+aiosqlite:///./my_agent_data.db", "./my_agent_data.db"),
        ("sqlite:///relative/file.db", "relative/file.db"),
        ("sqlite:////absolute/file.db", "/absolute/file.db"),
        ("SQLite:///with%20space.db", "with space.db"),
        ("sqlite:///:memory:", ":memory:"),
        ("sqlite://", ":memory:"),
        ("sqlite+aiosqlite://", ":memory:"),
    ],
)
def test_sqlite_urls_mean_what_sqlalchemy_means(url, path):
    assert connect(url).path == path


def test_memory_is_an_engine_too():
    assert isinstance(connect("memory://"), MemoryEngine)


@pytest.mark.parametrize(
    ("url", "advice"),
    [
        ("my_agent_data.db", "sqlite:///"),
        ("", "sqlite:///"),
        (None, "sqlite:///"),
        ("sqlite://my_agent_data.db", "sqlite:///my_agent_data.db"),
        ("sqlite:///a.db?mode=ro", "durability="),
        ("mongodb://localhost/x", "unknown"),
        ("postgresql+pg8000://user:secret@localhost/db", "postgresql://"),
        ("postgresql://user:secret@localhost/db?pool_max=many", "pool_max"),
        ("mysql+aiomysql://user:secret@localhost/db", "MySQL is not supported"),
    ],
)
def test_a_url_that_cannot_work_says_which_would(url, advice):
    with pytest.raises(UnsupportedUrlError, match=advice):
        connect(url)


@pytest.mark.parametrize("url", ["user:secret@host/db", "://user:secret@host", "x y://u:secret@h"])
def test_a_password_is_never_shown(url):
    with pytest.raises(UnsupportedUrlError) as refused:
        connect(url)
    assert "secret" not in str(refused.value)


def test_an_unknown_durability_is_refused():
    with pytest.raises(InvalidInputError, match="full, normal"):
        connect("sqlite:///a.db", durability="off")


@pytest.mark.parametrize(
    "scheme", ["postgresql", "postgres", "postgresql+asyncpg", "postgresql+psycopg", "PostgreSQL"]
)
def test_postgres_urls_mean_the_same_whatever_the_driver(scheme):
    engine = connect(f"{scheme}://u:p@host:1/db?schema=s&ssl=require&pool_max=3")
    assert engine.schema == "s"
    assert engine._settings.pool_max == 3
    assert engine._settings._dsn == (
        "postgresql://u:p@host:1/db?sslmode=require&application_name=threadline"
    )


def test_a_missing_driver_is_named_with_its_extra(monkeypatch):
    monkeypatch.delitem(sys.modules, "threadline.engines.postgres", raising=False)
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'threadline\[postgres\]'"):
        connect("postgresql://localhost/db")


@pytest.mark.parametrize(
    "options", [{"pool_max": 0}, {"pool_min": 5, "pool_max": 2}, {"schema": ""}]
)
def test_a_pool_or_schema_that_cannot_be_is_refused(options):
    with pytest.raises(InvalidInputError):
        connect("postgresql://localhost/db", **options)


def test_sqlite_has_no_pool_and_no_schema():
    with pytest.raises(InvalidInputError, match="schema"):
        connect("sqlite:///a.db", schema="s")
