"""Who a bearer token speaks for."""

import hmac
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clawbox import auth
from clawbox.auth import Principal, PrincipalLimits, TokenTable, bearer_token, digest_of, new_token
from clawbox.config import AuthSettings, Config, ConfigError, ServerSettings, TokenSettings
from clawbox.errors import ClawboxError, Reason

TOKEN_ALPHABET = "abcXYZ019-._~+/"


def table(**tokens: str) -> TokenTable:
    return TokenTable((digest_of(token), Principal(name, frozenset())) for name, token in tokens.items())


def refused(reason: Reason, authorization: str | None, tokens: TokenTable | None = None) -> ClawboxError:
    with pytest.raises(ClawboxError) as caught:
        (tokens or table(a="good")).authenticate(authorization)
    assert caught.value.reason is reason
    return caught.value


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "bEaReR"])
def test_a_known_token_is_its_principal(scheme: str) -> None:
    tokens = table(first="one", second="two", third="three")
    for name, token in (("first", "one"), ("second", "two"), ("third", "three")):
        assert tokens.authenticate(f"{scheme} {token}").name == name


@pytest.mark.parametrize("authorization", [None, ""])
def test_nothing_is_token_missing(authorization: str | None) -> None:
    refused(Reason.TOKEN_MISSING, authorization)


@pytest.mark.parametrize(
    "authorization",
    [
        "good",
        "Bearer",
        "Bearer ",
        "Bearergood",
        "Bearer\tgood",
        " Bearer good",
        "Bearer good ",
        "Bearer good\n",
        "Bearer good good",
        "Bearer good,good",
        "Bearer good, Bearer good",
        'Bearer "good"',
        "Bearer =good",
        "Bearer go=od",
        "Bearer göod",
        "Bearer good\0",
        "Basic good",
        "Bearer Good",
        "Bearer goo",
        "Bearer goodd",
    ],
)
def test_anything_else_is_token_invalid_and_is_not_repeated(authorization: str) -> None:
    error = refused(Reason.TOKEN_INVALID, authorization)
    assert "goo" not in str(error).lower()
    assert "goo" not in repr(error.metadata).lower()


@given(st.text(TOKEN_ALPHABET, min_size=1, max_size=40), st.text("=", max_size=2), st.integers(1, 3))
def test_every_token_of_rfc_6750_passes_unchanged(text: str, padding: str, spaces: int) -> None:
    assert bearer_token(f"Bearer{' ' * spaces}{text}{padding}") == text + padding


@given(st.text(max_size=60))
def test_no_authorization_is_more_than_a_token_or_an_error(text: str) -> None:
    try:
        token = bearer_token(text)
    except ClawboxError as error:
        assert error.reason in (Reason.TOKEN_MISSING, Reason.TOKEN_INVALID)  # noqa: PT017
    else:
        assert text.lower().startswith("bearer ")
        assert text.endswith(token)
        assert not any(char.isspace() for char in token)


def test_every_digest_is_compared_whichever_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = table(first="one", second="two", third="three")
    compared: list[bytes] = []

    def compare(known: bytes, presented: bytes) -> bool:
        compared.append(known)
        return real(known, presented)

    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", compare)
    tokens.authenticate("Bearer one")
    assert len(compared) == 3
    refused(Reason.TOKEN_INVALID, "Bearer four", tokens)
    assert len(compared) == 6


def test_scopes() -> None:
    one = Principal("one", frozenset({"sandbox:execute"}))
    assert one.allows("sandbox:execute")
    assert not one.allows("sandbox:write")
    assert not one.is_admin
    admin = Principal("admin", frozenset("*"))
    assert admin.is_admin
    assert all(admin.allows(scope) for scope in auth.SCOPES)


def test_nothing_secret_is_in_a_repr() -> None:
    config = Config(
        server=ServerSettings.model_validate({"auth_token": "sesame"}),
        auth=AuthSettings(tokens=(TokenSettings(name="n", sha256=digest_of("two")),)),
    )
    tokens = TokenTable.of(config)
    shown = repr(tokens) + repr(tokens.find("admin")) + repr(config.server)
    assert "sesame" not in shown
    assert digest_of("sesame") not in shown
    assert digest_of("two") not in repr(tokens)
    assert repr(tokens) == "TokenTable(admin, n)"


def test_principals_have_the_limits_of_their_settings() -> None:
    token = TokenSettings.model_validate(
        {
            "name": "n",
            "sha256": digest_of("t"),
            "scopes": ["sandbox:execute"],
            "network_allowlist": ["api.example.com"],
            "credentials": [],
            "max_sandboxes": 2,
        }
    )
    tokens = TokenTable.of(
        Config(server=ServerSettings.model_validate({"auth_token": "a"}), auth=AuthSettings(tokens=(token,)))
    )
    found = tokens.find("n")
    assert found is not None
    assert found == tokens.authenticate("Bearer t")
    assert [rule.host for rule in found.limits.network or ()] == ["api.example.com"]
    assert found.limits.credentials == frozenset()
    assert (found.limits.max_sandboxes, found.limits.max_streams) == (2, None)
    assert tokens.authenticate("Bearer a") == Principal("admin", frozenset("*"), PrincipalLimits())
    assert tokens.find("nobody") is None


def test_a_named_token_must_not_be_the_administrator_s() -> None:
    config = Config(
        server=ServerSettings.model_validate({"auth_token": "same"}),
        auth=AuthSettings(tokens=(TokenSettings(name="n", sha256=digest_of("same")),)),
    )
    with pytest.raises(ConfigError, match=r"auth\.tokens\[0\]\.sha256: found the administrator's token"):
        TokenTable.of(config)


def test_new_tokens_are_random_and_well_formed() -> None:
    tokens = {new_token() for _ in range(50)}
    assert len(tokens) == 50
    assert all(bearer_token(f"Bearer {token}") == token and len(token) == 64 for token in tokens)


def with_token_file(file: Path) -> Config:
    return Config(server=ServerSettings(auth_token_file=file))


def test_the_administrator_s_token_comes_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("sesame\n")
    file.chmod(0o600)
    assert TokenTable.of(with_token_file(file)).authenticate("Bearer sesame").is_admin


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o644])
def test_a_token_file_that_others_can_use_is_refused_with_the_remedy(mode: int, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("sesame\n")
    file.chmod(mode)
    with pytest.raises(ConfigError) as caught:
        TokenTable.of(with_token_file(file))
    assert f"chmod 600 {file}" in str(caught.value)
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "an empty file"),
        (" \n", "an empty file"),
        ("two words\n", "text that is no token"),
        ("one\ntwo\n", "text that is no token"),
        ("ü\n", "text that is no token"),
        ("changeme\n", "the token of the examples"),
        ("x" * 20_000, "a huge file"),
    ],
)
def test_a_token_file_without_a_good_token_is_refused(text: str, found: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(text)
    file.chmod(0o600)
    with pytest.raises(ConfigError, match=found):
        TokenTable.of(with_token_file(file))


def test_what_is_no_token_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "fifo", 0o600)
    for name, found in (
        ("none", "no such file"),
        ("fifo", "something that is not a file"),
        (".", "not a file"),
    ):
        with pytest.raises(ConfigError, match=found):
            TokenTable.of(with_token_file(tmp_path / name))
