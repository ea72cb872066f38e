"""``clawbox init``."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from clawbox.auth import TokenTable
from clawbox.config import Config
from clawbox.config.problems import ConfigError

from .conftest import Clawbox


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_what_it_makes_is_for_its_owner_alone(umask: int, clawbox: Clawbox, home: Path) -> None:
    before = os.umask(umask)
    try:
        ran = clawbox("init")
    finally:
        os.umask(before)
    folder = home / ".clawbox"
    assert (ran.code, ran.err) == (0, "")
    assert {path.name for path in folder.iterdir()} == {"config.toml", "token", "tools", "audit"}
    assert mode(folder) == 0o700
    assert mode(folder / "config.toml") == mode(folder / "token") == 0o600
    assert mode(folder / "tools") == mode(folder / "audit") == 0o700


def test_its_settings_and_token_work_and_it_says_what_to_do_next(clawbox: Clawbox, home: Path) -> None:
    folder = home / "a box"
    ran = clawbox("init", "--dir", folder)
    config = Config.load(folder / "config.toml")
    token = (folder / "token").read_text().strip()
    assert TokenTable.of(config).authenticate(f"Bearer {token}").is_admin
    assert config.sandbox.tool_dir == folder / "tools"
    assert config.logging.audit_dir == folder / "audit"
    assert config.credentials.store_path == folder / "credentials.enc"
    assert config.tool_policy.network_allowlist == ()
    assert f"clawbox serve --config '{folder / 'config.toml'}'" in ran.out
    assert "'print(6 * 7)'" in ran.out
    assert token not in ran.out


def uncomment(file: Path, section: str) -> None:
    """Put one of the commented examples into force: its lines, as far as they are TOML."""
    head, mark, rest = file.read_text().partition(f"\n# [{section}]\n")
    assert mark
    example, blank, rest = rest.partition("\n\n")
    lines = [line.removeprefix("#").strip() for line in example.splitlines()]
    file.write_text("\n".join([head, f"[{section}]", *lines]) + blank + rest)


def test_the_commented_example_of_a_policy_is_right(clawbox: Clawbox, home: Path) -> None:
    clawbox("init")
    file = home / ".clawbox" / "config.toml"
    uncomment(file, "tool_policy")
    policy = Config.load(file).tool_policy
    assert [rule.host for rule in policy.network_allowlist] == ["api.github.com"]
    assert policy.allowed_credentials == ("github",)


def test_the_commented_examples_for_containers_are_right_and_fit_each_other(
    clawbox: Clawbox, home: Path
) -> None:
    clawbox("init")
    file = home / ".clawbox" / "config.toml"
    assert Config.load(file).container_policy.network_allowlist == ()
    assert Config.load(file).images.templates == {}

    uncomment(file, "container_policy")
    uncomment(file, "images.templates.code-runner")

    config = Config.load(file)
    (name, template), *others = config.images.templates.items()
    assert (name, others) == ("code-runner", [])
    assert template.image == config.images.default
    assert template.command == ()
    assert template.resources.memory_mb == 1024
    assert "pypi.org" in {rule.host for rule in template.network_allowlist}
    assert set(template.network_allowlist) <= set(config.container_policy.network_allowlist)
    assert template.resources.pids is not None
    assert template.resources.pids <= config.containers.max_pids


def test_what_exists_is_not_touched(clawbox: Clawbox, home: Path) -> None:
    clawbox("init")
    folder = home / ".clawbox"
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    ran = clawbox("init")
    assert ran.code == 7
    assert "--force" in ran.err
    assert ran.out == ""
    assert {path: path.read_bytes() for path in before} == before


def test_force_replaces_both_and_says_that_the_old_token_is_void(clawbox: Clawbox, home: Path) -> None:
    clawbox("init")
    folder = home / ".clawbox"
    named = clawbox("token", "add", "n", "--scope", "*").out.strip()
    old = (folder / "token").read_text().strip()
    ran = clawbox("init", "--force")
    assert "old token is void" in ran.out
    tokens = TokenTable.of(Config.load())
    new = (folder / "token").read_text().strip()
    assert new != old
    assert tokens.authenticate(f"Bearer {new}").is_admin
    assert tokens.names == ("admin",)
    assert named not in (folder / "config.toml").read_text()


def test_a_lost_token_is_made_anew_and_the_settings_stay(clawbox: Clawbox, home: Path) -> None:
    clawbox("init")
    folder = home / ".clawbox"
    settings = (folder / "config.toml").read_text() + "\n[metrics]\nport = 1\n"
    (folder / "config.toml").write_text(settings)
    (folder / "token").unlink()
    ran = clawbox("init", "--json")
    assert (ran.json["wrote_config"], ran.json["voided"]) == (False, False)
    assert (folder / "config.toml").read_text() == settings
    TokenTable.of(Config.load())


def test_no_token_is_made_that_the_settings_do_not_use(clawbox: Clawbox, home: Path) -> None:
    folder = home / ".clawbox"
    folder.mkdir(mode=0o700)
    (folder / "config.toml").write_text('[server]\nauth_token = "inline"\n')
    assert clawbox("init").code == 7
    assert not (folder / "token").exists()


def test_a_folder_that_others_use_is_refused(clawbox: Clawbox, home: Path) -> None:
    shared = home / "shared"
    shared.mkdir()
    (shared / "theirs").touch()
    shared.chmod(0o755)
    ran = clawbox("init", "--dir", shared)
    assert ran.code == 2
    assert "chmod 700" in ran.err
    assert mode(shared) == 0o755
    assert [path.name for path in shared.iterdir()] == ["theirs"]


def test_an_empty_folder_is_made_private(clawbox: Clawbox, home: Path) -> None:
    folder = home / "empty"
    folder.mkdir()
    folder.chmod(0o755)
    assert clawbox("init", "--dir", folder).code == 0
    assert mode(folder) == 0o700


def test_a_file_in_the_way(clawbox: Clawbox, home: Path) -> None:
    (home / "file").touch()
    ran = clawbox("init", "--dir", home / "file")
    assert ran.code == 2
    assert "is not a folder" in ran.err


def test_json(clawbox: Clawbox, home: Path) -> None:
    answer = clawbox("init", "--json").json
    assert answer == {
        "folder": str(home / ".clawbox"),
        "config_file": str(home / ".clawbox" / "config.toml"),
        "token_file": str(home / ".clawbox" / "token"),
        "wrote_config": True,
        "voided": False,
    }


def test_without_init_the_server_has_no_token_and_says_so(home: Path) -> None:
    with pytest.raises(ConfigError, match="clawbox init"):
        TokenTable.of(Config.load())


def test_what_to_do_next_can_be_copied_where_the_program_is_not_on_the_path(tmp_path: Path) -> None:
    installed = Path(sys.executable).parent
    for path, command in (("/usr/bin:/bin", "./clawbox"), (f"{installed}:/usr/bin:/bin", "clawbox")):
        folder = tmp_path / str(len(path))
        ran = subprocess.run(
            [command, "init", "--dir", folder],
            cwd=installed,
            env={"HOME": str(tmp_path), "PATH": path},
            capture_output=True,
            text=True,
            check=True,
        )
        assert f"\n  {command} serve --config {folder}/config.toml\n" in ran.stdout
