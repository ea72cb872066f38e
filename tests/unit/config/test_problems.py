"""What is said about settings that cannot be used: everything, once, and no secret."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clawbox.config import ConfigError, Problem
from clawbox.config.load import load

SECRET = "hunter2-hunter2"


def problems(text: str, tmp_path: Path, **environ: str) -> dict[str, Problem]:
    """The problems of a file with that text, by key."""
    file = tmp_path / "c.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(file, environ=environ)
    found = {problem.key: problem for problem in caught.value.problems}
    assert len(found) == len(caught.value.problems), "one problem for each key"
    for problem in caught.value.problems:
        assert str(problem) in str(caught.value)
    return found


def test_everything_wrong_is_reported_at_once_with_file_key_found_and_accepted(tmp_path: Path) -> None:
    found = problems(
        """
top = 1
[server]
port = "9800"
host = "0.0.0.0"
reflexion = "open"
[metrics]
port = 70000
[sandbox]
default_fuel = 0
[tool_policy]
network_allowlist = ["ok.example.com", {host = "b.example.com", ports = [0]}]
[images.templates."a b"]
image = "x"
[[auth.tokens]]
name = "n"
sha256 = "short"
scopes = ["sandbox:red"]
""",
        tmp_path,
        CLAWBOX_LOG_LEVEL="loud",
        CLAWBOX_SANDBOX__WORKRES="3",
    )
    file = str(tmp_path / "c.toml")
    assert found["server.port"] == Problem(file, "server.port", '"9800"', "0 (any free port) to 65535")
    assert found["server.reflexion"].accepted == "server.reflection"
    assert "without TLS" in found["server.host"].found
    assert found["metrics.port"].found == "70000"
    assert found["sandbox.default_fuel"].found == "0"
    assert "0 is not a port" in found["tool_policy.network_allowlist[1].ports[0]"].found
    assert found["images.templates"].found == 'the name "a b"'
    assert "auth.tokens[0].sha256" in found
    assert '"sandbox:read"' in found["auth.tokens[0].scopes[0]"].accepted
    assert found["logging.level"].source == "environment CLAWBOX_LOG_LEVEL"
    assert found[""] == Problem(
        "environment CLAWBOX_SANDBOX__WORKRES", "", "an unknown name", "CLAWBOX_SANDBOX__WORKERS"
    )
    assert "server, metrics" in found["top"].accepted
    assert len(found) == 12


@pytest.mark.parametrize(
    ("text", "key", "nearest"),
    [
        ("[server]\ntool_dir = 'x'", "server.tool_dir", "sandbox.tool_dir"),
        ("port = 1", "port", "server.port or metrics.port"),
        ("[sever]", "sever", "server"),
        ("[[auth.token]]\nname = 'x'", "auth.token", "auth.tokens"),
        (
            "[[auth.tokens]]\nname='x'\nsha256='%s'\nscope=[]" % ("a" * 64),
            "auth.tokens[0].scope",
            "auth.tokens[0].scopes",
        ),
        (
            "[images.templates.a]\nimage='x'\nimagee='y'",
            "images.templates.a.imagee",
            "images.templates.a.image",
        ),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(
    text: str, key: str, nearest: str, tmp_path: Path
) -> None:
    assert problems(text, tmp_path)[key].accepted == nearest


@pytest.mark.parametrize(
    "text",
    [
        f"[server]\nauth_token = '{SECRET} with spaces'",
        f"[server]\nauth_token = ['{SECRET}']",
        f"[server]\nauth_tokn = '{SECRET}'",
        f"server = '{SECRET}'",
        f"[[auth.tokens]]\nname = 'n'\nsha256 = '{SECRET}'",
        f"[state]\nurl = {{password = '{SECRET}'}}",
        f"[server]\nauth_token = '{SECRET}\n",
    ],
)
def test_no_value_of_a_secret_is_ever_shown(text: str, tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(file, environ={})
    assert SECRET not in str(caught.value)
    assert SECRET not in repr(caught.value.problems)


def test_the_value_of_a_secret_in_the_environment_is_not_shown(tmp_path: Path) -> None:
    found = problems("", tmp_path, CLAWBOX_AUTH_TOKEN=f"{SECRET} x", CLAWBOX_AUTH__TOKENS=f"[{SECRET}")
    assert SECRET not in repr(found)
    assert set(found) == {"server.auth_token", "auth.tokens"}


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[server]\nport = -1", "server.port"),
        ("[server]\nport = 65536", "server.port"),
        ("[server]\nport = true", "server.port"),
        ("[server]\nport = 1.0", "server.port"),
        ("[server]\nhost = ''", "server.host"),
        ("[server]\nhost = '[::1]'", "server.host"),
        ("[server]\nauth_token_file = ''", "server.auth_token_file"),
        ("[server]\nauth_token = 'changeme'", "server.auth_token"),
        ("[server]\nmax_concurrent_executions = 0", "server.max_concurrent_executions"),
        ("[server]\ntls_cert = 'x'", "server.tls_key"),
        ("[server]\ntls_key = 'x'", "server.tls_cert"),
        ("[server]\ntls_client_ca = 'x'", "server.tls_client_ca"),
        ("[server]\nhost = 'example.com'", "server.host"),
        ("[server]\ninsecure = 'yes'", "server.insecure"),
        ("[server]\nport = 9801", "metrics.port"),
        ("[sandbox]\ndefault_timeout_ms = 0", "sandbox.default_timeout_ms"),
        ("[sandbox]\ndefault_memory_mb = 2000", "sandbox.default_memory_mb"),
        ("[sandbox]\ncompile_timeout_ms = 0", "sandbox.compile_timeout_ms"),
        ("[egress]\ntrusted_networks = ['10.0.0.1/8']", "egress.trusted_networks[0]"),
        ("[logging]\nlevel = 3", "logging.level"),
        ("[children]\nuid_first = 0", "children.uid_first"),
        ("[children]\nuid_first = 2147483000", "children.uid_count"),
        ("[[auth.tokens]]\nname = 'admin'\nsha256 = '%s'" % ("a" * 64), "auth.tokens[0].name"),
        ("[[auth.tokens]]\nname = 'x'", "auth.tokens[0].sha256"),
        ("[images.templates.t]\nimage = 'x'\nuser = 'root'", "images.templates.t.user"),
    ],
)
def test_what_is_refused(text: str, key: str, tmp_path: Path) -> None:
    assert set(problems(text, tmp_path)) == {key}


def test_two_tokens_of_one_name_or_digest(tmp_path: Path) -> None:
    token = "[[auth.tokens]]\nname = '%s'\nsha256 = '%s'\n"
    text = token % ("x", "a" * 64) + token % ("x", "b" * 64) + token % ("y", "b" * 64)
    assert set(problems(text, tmp_path)) == {"auth.tokens[1].name", "auth.tokens[2].sha256"}


@pytest.mark.parametrize(
    "text",
    [
        "[server]\nport = 0\n[metrics]\nport = 0",
        "[server]\nauth_token = ''",
        "[server]\nhost = '0.0.0.0'\ninsecure = true",
        "[server]\nhost = '0.0.0.0'\ntls_cert = 'c'\ntls_key = 'k'",
        "[server]\nauth_token = 'changeme'\ninsecure = true",
        "[server]\nhost = '127.8.9.10'",
        "[server]\nhost = 'localhost'",
        "[tool_policy]\nnetwork_allowlist = ['*']",
    ],
)
def test_what_is_accepted(text: str, tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(text)
    load(file, environ={})


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"[server", "a syntax error"),
        (b"x = '\xff'", "not UTF-8"),
        (b"x = " + b"[" * 100_000, "nested too deep"),
        (b"#" * (5 << 20), "a huge file"),
    ],
)
def test_a_file_that_is_no_toml(data: bytes, found: str, tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        load(file, environ={"CLAWBOX_PORT": "nine"})
    first, second = caught.value.problems
    assert found in first.found
    assert second.key == "server.port"


def test_a_folder_in_place_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Is a directory"):
        load(tmp_path, environ={})


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20))
def test_any_text_in_the_environment_is_a_value_or_a_problem(text: str) -> None:
    names = [
        "CLAWBOX_PORT",
        "CLAWBOX_AUTH__TOKENS",
        "CLAWBOX_SERVER__INSECURE",
        "CLAWBOX_EGRESS__UPSTREAM_CA",
    ]
    for name in names:
        try:
            config = load(Path("/dev/null"), environ={name: text}).config
        except ConfigError as error:
            assert {problem.source for problem in error.problems} == {f"environment {name}"}  # noqa: PT017
        else:
            assert 0 <= config.server.port <= 65535


@given(st.integers(0, 65535), st.integers(0, 65535), st.none() | st.integers(0, 65535))
def test_for_each_key_the_last_word_counts(file_port: int, short: int, long: int | None) -> None:
    environ = {"CLAWBOX_PORT": str(short), "CLAWBOX_METRICS__HOST": "::1"}
    if long is not None:
        environ["CLAWBOX_SERVER__PORT"] = str(long)
    loaded = load(Path("/dev/null"), environ=environ, overrides={"sandbox.workers": file_port})
    assert loaded.config.server.port == (short if long is None else long)
    assert loaded.config.sandbox.workers == file_port
