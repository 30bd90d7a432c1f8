from __future__ import annotations

from pathlib import Path

import pytest

from feature_store import StoreConfigError
from feature_store.address import Address


def test_urls_of_every_kind() -> None:
    single = Address.parse("redis://me:p%40ss@db:7000/3")
    assert (single.hosts, single.database, single.username, single.password) == ((("db", 7000),), 3, "me", "p@ss")
    assert not single.tls
    unix = Address.parse("unix:///a%20b/s.sock?db=2")
    assert (unix.socket_path, unix.database, unix.hosts) == ("/a b/s.sock", 2, ())
    sentinel = Address.parse("rediss+sentinel://a:1,[::1]:2,c/main/4?sentinel_password=x")
    assert (sentinel.hosts, sentinel.master, sentinel.database) == ((("a", 1), ("::1", 2), ("c", 26379)), "main", 4)
    assert sentinel.tls
    cluster = Address.parse("redis+cluster://:secret@a,b:2")
    assert (cluster.deployment, cluster.hosts, cluster.password) == ("cluster", (("a", 6379), ("b", 2)), "secret")


def test_printing_an_address_shows_no_password() -> None:
    shown = repr(Address.parse("redis+sentinel://me:hidden@a/main?sentinel_password=hidden"))
    assert "hidden" not in shown


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://localhost", "unknown scheme 'http'"),
        ("localhost:6379", "write redis://"),
        ("redis://localhost:none", "write redis://"),
        ("redis://localhost/first", "database 'first' is no number"),
        ("redis://localhost?ssl_ca_certs=x", "redis:// has no option 'ssl_ca_certs'"),
        ("rediss://localhost?ssl_ca_certs=/none.pem", "there is no file /none.pem"),
        ("rediss://localhost?ssl_cert_reqs=maybe", "none, optional or required"),
        ("redis+sentinel://localhost", "no name of a master"),
        ("redis+cluster://localhost/1", "database 0 only"),
    ],
)
def test_what_cannot_be_used_says_why(url: str, message: str) -> None:
    with pytest.raises(StoreConfigError, match=r"^store: ") as caught:
        Address.parse(url)
    assert message in str(caught.value)


def test_options_of_tls_reach_the_client(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("")
    client = Address.parse(f"rediss://a/0?ssl_ca_certs={tmp_path}/ca.pem").client()
    assert client.connection_pool.connection_kwargs["ssl_ca_certs"] == f"{tmp_path}/ca.pem"
