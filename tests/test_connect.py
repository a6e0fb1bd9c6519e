"""Which URLs work, and what the others are told."""

import ssl
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
        ("mysql+pymysql://user:secret@localhost/db", "mysql://"),
    ],
)
def test_a_url_that_cannot_work_says_which_would(url, advice):
    with pytest.raises(UnsupportedUrlError, match=advice):
        connect(url)


def test_a_mysql_url_gives_the_engine_its_options():
    engine = connect("mysql://u%40x:p%2Fw@h:3307/db?table_prefix=mine_&pool_max=3&pool_min=0")
    assert (engine.where, engine.table_prefix, engine._pool_max) == ("db at h:3307", "mine_", 3)
    made = engine._driver.hosts[0].keywords
    assert (made["user"], made["password"], made["ssl"]) == ("u@x", b"p/w", None)


@pytest.mark.parametrize(
    ("hosts", "places"),
    [
        ("h1,h2:3307", [("h1", 3306), ("h2", 3307)]),
        ("u:p%2C@h1:1,h2:2,h3:3", [("h1", 1), ("h2", 2), ("h3", 3)]),
        ("[::1]:1,[::2]", [("::1", 1), ("::2", 3306)]),
    ],
)
def test_a_mysql_url_may_name_several_hosts(hosts, places):
    made = [host.keywords for host in connect(f"mysql://{hosts}/db")._driver.hosts]
    assert [(one["host"], one["port"]) for one in made] == places


@pytest.mark.parametrize(
    ("query", "checks"),
    [
        ("ssl_mode=required", (False, ssl.CERT_NONE)),
        ("ssl-mode=VERIFY_CA", (False, ssl.CERT_REQUIRED)),
        ("ssl_mode=verify_identity", (True, ssl.CERT_REQUIRED)),
    ],
)
def test_tls_of_a_mysql_url_says_what_is_checked(query, checks):
    tls = connect(f"mysql://h/db?{query}")._driver.hosts[0].keywords["ssl"]
    assert (tls.check_hostname, tls.verify_mode) == checks


@pytest.mark.parametrize(
    ("url", "advice"),
    [
        ("mysql://u:secret@h", "names no database"),
        ("mysql://u:secret@h:x/db", "percent-encoded"),
        ("mysql://u:secret@h1,h2:x/db", "percent-encoded"),
        ("mysql://u:secret@h1,,h2/db", "both sides of each comma"),
        ("mysql://u:secret@h1,h2/db?unix_socket=/s", "no unix_socket"),
        ("mysql://u:sec/ret@h/db", "percent-encoded"),
        ("mysql://u:secret@h/db?pool=3", "unknown; there are .*pool_max"),
        ("mysql://u:secret@h/db?pool_max=many", "must be a number"),
        ("mysql://u:secret@h/db?pool_max=0", "pool_min <= pool_max"),
        ("mysql://u:secret@h/db?charset=latin1", "utf8mb4"),
        ("mysql://u:secret@h/db?ssl_mode=maybe", "verify_identity"),
        ("mysql://u:secret@h/db?ssl_ca=/no/such/file", "PEM"),
        ("mysql://u:secret@h/db?table_prefix=a;b", "table_prefix"),
        ("mariadb+pymysql://u:secret@h/db", "pip install 'threadline"),
    ],
)
def test_a_mysql_url_that_cannot_work_says_why_and_shows_no_password(url, advice):
    with pytest.raises(UnsupportedUrlError, match=advice) as refused:
        connect(url)
    assert "secret" not in str(refused.value)
    assert "ret@" not in str(refused.value)


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
    assert engine._pool_max == 3
    assert engine._driver._dsns == [
        "postgresql://u:p@host:1/db?sslmode=require&application_name=threadline"
    ]


@pytest.mark.parametrize(
    ("url", "driver", "extra"),
    [("postgresql://h/db", "asyncpg", "postgres"), ("mysql://h/db", "asyncmy", "mysql")],
)
def test_a_missing_driver_is_named_with_its_extra(monkeypatch, url, driver, extra):
    for name in [name for name in sys.modules if name.startswith(f"threadline.engines.{extra}")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, driver, None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'threadline\[{extra}\]'"):
        connect(url)


@pytest.mark.parametrize(
    "options", [{"pool_max": 0}, {"pool_min": 5, "pool_max": 2}, {"schema": ""}]
)
def test_a_pool_or_schema_that_cannot_be_is_refused(options):
    with pytest.raises(InvalidInputError):
        connect("postgresql://localhost/db", **options)


def test_sqlite_has_no_pool_and_no_schema():
    with pytest.raises(InvalidInputError, match="schema"):
        connect("sqlite:///a.db", schema="s")
