"""Tokens of the settings file are applied while the server runs."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from clawbox import auth
from clawbox.auth import TokenTable, watch_tokens
from clawbox.config import Config
from clawbox.config.edit import add_token, initialise, remove_token
from clawbox.errors import ClawboxError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("CLAWBOX_AUTH_TOKEN", raising=False)
    return initialise(tmp_path / "box").folder


def knows(table: TokenTable, token: str) -> bool:
    try:
        table.authenticate(f"Bearer {token}")
    except ClawboxError:
        return False
    return True


def replace_text(file: Path, text: str) -> None:
    """At once: between cutting a file short and writing it anew it would be read as one without tokens."""
    fresh = file.with_name("fresh")
    fresh.write_text(text)
    fresh.chmod(0o600)
    fresh.rename(file)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - the table tells nobody when it changes
            await asyncio.sleep(0.01)


async def test_added_and_revoked_tokens_take_effect(folder: Path) -> None:
    file = folder / "config.toml"
    config = Config.load(file)
    table = TokenTable.of(config)
    async with watch_tokens(table, config):
        token = add_token(file, {"name": "n", "scopes": ["sandbox:read"]})
        await until(lambda: knows(table, token))
        assert table.authenticate(f"Bearer {token}").scopes == {"sandbox:read"}
        remove_token(file, "n")
        await until(lambda: not knows(table, token))
        assert table.names == ("admin",)


async def test_a_broken_file_keeps_the_tokens_and_is_reported(folder: Path) -> None:
    file = folder / "config.toml"
    token = add_token(file, {"name": "n", "scopes": []})
    good = file.read_text()
    config = Config.load(file)
    table = TokenTable.of(config)
    async with watch_tokens(table, config):
        replace_text(file, "[auth\n")
        await until(lambda: table.problem is not None)
        assert "syntax error" in (table.problem or "")
        assert knows(table, token)
        replace_text(file, good)
        await until(lambda: table.problem is None)
        assert knows(table, token)


async def test_a_new_administrator_s_token_voids_the_old_one(folder: Path) -> None:
    config = Config.load(folder / "config.toml")
    table = TokenTable.of(config)
    old = (folder / "token").read_text().strip()
    async with watch_tokens(table, config):
        initialise(folder, force=True)
        new = (folder / "token").read_text().strip()
        await until(lambda: knows(table, new))
        assert not knows(table, old)


async def test_a_token_file_that_becomes_readable_by_others_is_reported(folder: Path) -> None:
    config = Config.load(folder / "config.toml")
    table = TokenTable.of(config)
    async with watch_tokens(table, config):
        (folder / "token").chmod(0o644)
        await until(lambda: table.problem is not None)
        assert "chmod 600" in (table.problem or "")


def replace(folder: Path) -> None:
    folder.rename(folder.with_name("old"))


async def test_a_folder_that_is_replaced_is_found_again(folder: Path) -> None:
    config = Config.load(folder / "config.toml")
    table = TokenTable.of(config)
    async with watch_tokens(table, config):
        replace(folder)
        await until(lambda: table.problem is not None)
        initialise(folder)
        new = (folder / "token").read_text().strip()
        await until(lambda: knows(table, new))


async def test_leaving_ends_the_watching_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "_LOOK_AGAIN_S", 3600.0)
    config = Config.load(folder / "config.toml")
    table = TokenTable.of(config)
    before = asyncio.all_tasks()
    async with asyncio.timeout(30):  # and not when it looks again
        async with watch_tokens(table, config):
            await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


async def test_an_error_passes_through_as_it_is(folder: Path) -> None:
    config = Config.load(folder / "config.toml")
    with pytest.raises(LookupError, match="body"):
        async with watch_tokens(TokenTable.of(config), config):
            raise LookupError("body")


async def test_without_files_there_is_nothing_to_watch() -> None:
    from clawbox.config import ServerSettings

    config = Config(server=ServerSettings.model_validate({"auth_token": "abc"}))
    table = TokenTable.of(config)
    async with watch_tokens(table, config):
        pass
    assert knows(table, "abc")
