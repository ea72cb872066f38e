"""Reading settings: where the file is looked for, what wins, where paths start."""

from pathlib import Path

import pytest

from clawbox.config import Config, ConfigError
from clawbox.config.load import find_file, load

NO_ENVIRONMENT: dict[str, str] = {}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder and working directory, and no settings in the environment."""
    home = tmp_path / "home"
    work = tmp_path / "work"
    home.mkdir()
    work.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.chdir(work)
    return home


def written(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def test_without_a_file_the_documented_defaults_are_in_force(home: Path) -> None:
    config = load(environ=NO_ENVIRONMENT).config
    assert config.file is None
    assert (config.server.host, config.server.port, config.metrics.port) == ("127.0.0.1", 9800, 9801)
    assert config.server.unix_socket is None
    assert config.server.auth_token_file == home / ".clawbox" / "token"
    assert config.sandbox.cache_dir == home / ".cache" / "clawbox"
    assert config.credentials.store_path == home / ".clawbox" / "credentials.enc"
    assert config.tool_policy.network_allowlist == ()


def test_files_are_looked_for_in_order(home: Path) -> None:
    places = [
        Path.cwd() / "config" / "default.toml",
        home / ".clawbox" / "config" / "clawbox.toml",
        home / ".clawbox" / "config.toml",
    ]
    assert find_file(None, NO_ENVIRONMENT) is None
    for place in places:
        written(place, "")
        assert find_file(None, NO_ENVIRONMENT) == place
    named = home / "named.toml"
    assert find_file(None, {"CLAWBOX_CONFIG": "~/named.toml"}) == named
    assert find_file(Path("given.toml"), {"CLAWBOX_CONFIG": "~/named.toml"}) == Path.cwd() / "given.toml"


@pytest.mark.parametrize("environ", [{"CLAWBOX_CONFIG": "/nowhere/x.toml"}, {}])
def test_a_named_file_that_is_not_there_is_an_error_not_a_default(
    home: Path, environ: dict[str, str]
) -> None:
    path = None if environ else Path("/nowhere/x.toml")
    with pytest.raises(ConfigError, match=r"^/nowhere/x\.toml: found No such file or directory") as caught:
        load(path, environ=environ)
    assert len(caught.value.problems) == 1


def test_paths_of_a_file_start_at_its_folder_and_the_environment_s_where_one_stands(home: Path) -> None:
    file = written(
        home / "etc" / "c.toml",
        '[server]\nunix_socket = "run/x.sock"\nauth_token_file = "~/t"\n[egress]\nupstream_ca = ["ca.pem"]\n',
    )
    config = load(file, environ={"CLAWBOX_TOOL_DIR": "mine", "CLAWBOX_LOGGING__AUDIT_DIR": "~/a"}).config
    assert config.server.unix_socket == home / "etc" / "run" / "x.sock"
    assert config.server.auth_token_file == home / "t"
    assert config.egress.upstream_ca == (home / "etc" / "ca.pem",)
    assert config.sandbox.tool_dir == Path.cwd() / "mine"
    assert config.logging.audit_dir == home / "a"
    assert config.credentials.store_path == home / ".clawbox" / "credentials.enc"


def test_the_environment_wins_over_the_file_and_overrides_win_over_both(home: Path) -> None:
    file = written(home / "c.toml", '[server]\nport = 1\nhost = "127.0.0.2"\n[metrics]\nport = 2\n')
    environ = {"CLAWBOX_PORT": "3", "CLAWBOX_METRICS__PORT": "4"}
    loaded = load(file, environ=environ, overrides={"metrics.port": 5})
    assert (loaded.config.server.port, loaded.config.metrics.port) == (3, 5)
    assert loaded.source_of("server.port") == "environment CLAWBOX_PORT"
    assert loaded.source_of("server.host") == str(file)
    assert loaded.source_of("metrics.port") == "command line"
    assert loaded.source_of("metrics.host") == "defaults"


def test_a_long_name_wins_over_a_short_one(home: Path) -> None:
    environ = {"CLAWBOX_SERVER__PORT": "7", "CLAWBOX_PORT": "8"}
    assert load(environ=environ).config.server.port == 7
    assert load(environ=dict(reversed(environ.items()))).config.server.port == 7


def test_every_short_name_of_the_original_works(home: Path) -> None:
    config = load(
        environ={
            "CLAWBOX_HOST": "::1",
            "CLAWBOX_PORT": "0",
            "CLAWBOX_AUTH_TOKEN": "abc",
            "CLAWBOX_TOOL_DIR": "/t",
            "CLAWBOX_LOG_LEVEL": "WARN",
            "CLAWBOX_MASTER_KEY": "00" * 32,
        }
    ).config
    assert (config.server.host, config.server.port) == ("::1", 0)
    assert config.server.auth_token is not None
    assert config.server.auth_token.get_secret_value() == "abc"
    assert config.sandbox.tool_dir == Path("/t")
    assert config.logging.level == "warning"
    assert "00" * 32 not in repr(config)


def test_lists_and_tables_from_the_environment(home: Path) -> None:
    config = load(
        environ={
            "CLAWBOX_TOOL_POLICY__NETWORK_ALLOWLIST": "a.example.com, *.b.example.com",
            "CLAWBOX_CONTAINER_POLICY__NETWORK_ALLOWLIST": '[{"host": "c.example.com", "ports": [8443]}]',
            "CLAWBOX_EGRESS__UPSTREAM_CA": "x.pem,/y.pem",
            "CLAWBOX_AUTH__TOKENS": '[{"name": "n", "sha256": "%s", "scopes": ["*"]}]' % ("a" * 64),
            "CLAWBOX_SANDBOX__WATCH_TOOLS": "off",
        }
    ).config
    assert [rule.host for rule in config.tool_policy.network_allowlist] == [
        "a.example.com",
        "*.b.example.com",
    ]
    assert config.container_policy.network_allowlist[0].ports == (8443,)
    assert config.egress.upstream_ca == (Path.cwd() / "x.pem", Path("/y.pem"))
    assert config.auth.tokens[0].scopes == ("*",)
    assert config.sandbox.watch_tools is False


def test_the_whole_file_of_an_original_user_is_accepted(home: Path) -> None:
    file = written(
        home / ".clawbox" / "config" / "clawbox.toml",
        """
[server]
host = "127.0.0.1"
port = 9800
auth_token = "00112233"
unix_socket = "/tmp/clawbox.sock"
max_concurrent_executions = 10
[sandbox]
tool_dir = "./tools/wasm"
default_fuel = 100000000
default_timeout_ms = 30000
watch_tools = true
[proxy]
max_response_bytes = 1048576
default_timeout_ms = 30000
[credentials]
store_path = "~/.clawbox/credentials.enc"
[logging]
format = "json"
level = "info"
audit_dir = "./audit"
[containers]
max_containers = 10
workspace_root = "~/.clawbox/workspaces"
[container_policy]
network_allowlist = []
allowed_credentials = []
allowed_policies = ["wasm_only", "container"]
[tools]
default_language = "rust"
[images.templates.web]
image = "alpine"
description = "d"
network_allowlist = ["example.com"]
credentials = []
command = ["sh"]
max_lifetime_ms = 5
""",
    )
    config = Config.load(file)
    assert config.file == file
    assert config.images.templates["web"].command == ("sh",)


def test_reading_again_takes_the_same_file_environment_and_overrides(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(home / "c.toml", "[metrics]\nport = 1\n")
    monkeypatch.setenv("CLAWBOX_PORT", "5")
    config = Config.load(file, overrides={"server.grace_ms": 9})
    monkeypatch.delenv("CLAWBOX_PORT")
    written(home / ".clawbox" / "config.toml", "[metrics]\nport = 77\n")
    written(file, "[metrics]\nport = 2\n")
    again = config.reload()
    assert (again.metrics.port, again.server.port, again.server.grace_ms) == (2, 5, 9)
    assert config.metrics.port == 1


def test_settings_made_by_code_are_checked_like_a_file() -> None:
    from clawbox.config import ServerSettings

    with pytest.raises(ValueError, match="without TLS"):
        ServerSettings(host="0.0.0.0")
    with pytest.raises(ValueError, match="frozen"):
        ServerSettings().port = 1
