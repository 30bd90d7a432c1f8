from __future__ import annotations

import hmac
import json
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner

from recsys.errors import ConfigError
from serving.cli import app
from serving.guard import keys as keys_module
from serving.guard.keys import KeyRing, create_key, read_keys, revoke_key


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_key_is_recognised_and_only_its_hash_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "new" / "keys.json"
    key = create_key(path, "shop", "write")
    assert key.startswith("recsys_write_")
    assert len(key) >= len("recsys_write_") + 43  # 256 bits
    assert key not in path.read_text()
    assert path.stat().st_mode & 0o077 == 0
    found = KeyRing(path).recognise(key)
    assert found is not None
    assert (found.name, found.role) == ("shop", "write")


@pytest.mark.parametrize(
    "change", [str.upper, lambda key: key[:-1], lambda key: key + "x", lambda _: "", lambda _: "ü"]
)
def test_what_is_almost_a_key_is_none(tmp_path: Path, change) -> None:
    key = create_key(tmp_path / "k", "shop", "read")
    assert KeyRing(tmp_path / "k").recognise(change(key)) is None


def test_every_hash_is_compared_in_constant_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [create_key(tmp_path / "k", name, "read") for name in ("a", "b", "c")]
    ring = KeyRing(tmp_path / "k")
    calls = []
    monkeypatch.setattr(
        keys_module.hmac, "compare_digest", lambda a, b, real=hmac.compare_digest: calls.append(1) or real(a, b)
    )
    for presented in (*made, "unknown"):
        calls.clear()
        ring.recognise(presented)
        assert len(calls) == 3


def test_a_client_changes_its_key_without_a_break_and_the_service_follows_the_file(tmp_path: Path) -> None:
    path, clock = tmp_path / "k", Clock()
    old = create_key(path, "shop", "read")
    ring = KeyRing(path, clock)
    new = create_key(path, "shop", "read")
    assert ring.recognise(new) is None, "the file is looked at every few seconds only"
    clock.now += 5
    assert ring.recognise(new) is not None
    assert ring.recognise(old) is not None
    with pytest.raises(ConfigError, match=f"2 live keys; first: recsys keys revoke {read_keys(path)[0].id}"):
        create_key(path, "shop", "read")
    revoke_key(path, read_keys(path)[0].id)
    clock.now += 5
    assert ring.recognise(old) is None
    assert ring.recognise(new) is not None


def test_a_file_that_was_damaged_meanwhile_locks_nobody_out(tmp_path: Path) -> None:
    path, clock = tmp_path / "k", Clock()
    key = create_key(path, "shop", "read")
    ring = KeyRing(path, clock)
    path.write_text("{")
    for _ in range(2):
        clock.now += 5
        with capture_logs() as logs:
            assert ring.recognise(key) is not None
        assert logs[0]["event"].startswith("keys not reloaded")
    create = tmp_path / "other"
    other = create_key(create, "shop", "read")
    create.replace(path)
    clock.now += 5
    assert ring.recognise(other) is not None
    assert ring.recognise(key) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read: No such file"),
        ("{", "is damaged"),
        ('{"keys": []}', "holds no key"),
        ('{"keys": [{"name": "a", "role": "root", "sha256": "00", "created_at": "2026-01-01"}]}', r"keys.0.role"),
    ],
)
def test_an_unusable_file_is_one_error_at_the_start(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "k").write_text(text)
    with pytest.raises(ConfigError, match=message):
        KeyRing(tmp_path / "k")


def test_a_name_has_one_role_and_a_simple_form(tmp_path: Path) -> None:
    create_key(tmp_path / "k", "shop", "read")
    with pytest.raises(ConfigError, match="has the role read"):
        create_key(tmp_path / "k", "shop", "admin")
    with pytest.raises(ConfigError, match="1 to 64 letters"):
        create_key(tmp_path / "k", "a b", "read")


def test_the_commands_make_list_and_revoke(tmp_path: Path) -> None:
    run, file = CliRunner(), ["--file", str(tmp_path / "k")]
    made = run.invoke(app, ["keys", "create", "shop", "--role", "write", *file])
    assert made.exit_code == 0, made.output
    key = made.stdout.strip()
    listed = json.loads(run.invoke(app, ["keys", "list", "--json", *file]).stdout)
    assert [(row["name"], row["role"]) for row in listed] == [("shop", "write")]
    plain = run.invoke(app, ["keys", "list", *file]).stdout
    assert "shop" in plain
    assert key not in plain
    assert KeyRing(tmp_path / "k").recognise(key)
    assert run.invoke(app, ["keys", "revoke", listed[0]["id"], *file]).exit_code == 0
    assert read_keys(tmp_path / "k") == ()
    assert isinstance(run.invoke(app, ["keys", "revoke", "nothing", *file]).exception, ConfigError)
