"""Which URLs work, and what the others are told."""

import pytest

from threadline import InvalidInputError, UnsupportedUrlError
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
        ("postgresql://user:secret@localhost/db", "PostgreSQL is not supported"),
        ("mysql+pymysql://user:secret@localhost/db", "mysql://"),
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
