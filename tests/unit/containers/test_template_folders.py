"""Which folders a template may name, and who says so."""

import dataclasses

import pytest

from clawbox.cli.container_settings import container_problems
from clawbox.config.load import load
from clawbox.containers.docker.answers import container_facts
from clawbox.containers.spec import build
from clawbox.containers.wanted import offer_of
from tests.unit.containers.test_spec import PLAN

BAD = (
    "",
    "app",
    "./app",
    "/app/",
    "/srv/../proc",
    "/srv/./app",
    "//srv",
    "/proc",
    "/proc/self/fd/7",
    "/sys/fs/cgroup",
    "/dev/shm",
    # A field of /etc/passwd, and then another line of it.
    "/srv:/bin/evil",
    "/srv\\nroot::0:0:::",
    "/" + 4095 * "a",
)


def loaded(tmp_path, **keys):
    file = tmp_path / "config.toml"
    said = "".join(f'{key} = "{value}"\n' for key, value in keys.items())
    file.write_text(f'[images.templates.box]\nimage = "alpine"\n{said}')
    return load(file, environ={})


@pytest.mark.parametrize("key", ["working_dir", "home"])
@pytest.mark.parametrize("path", BAD)
def test_a_folder_that_no_program_may_start_in_is_refused_and_named(key, path, tmp_path):
    found = loaded(tmp_path, **{key: path})

    (problem,) = container_problems(found)
    assert problem.key == f"images.templates.box.{key}"
    assert "outside /proc, /sys and /dev" in problem.accepted
    with pytest.raises(ValueError, match=rf"^images\.templates\.box\.{key}: must be an absolute path"):
        offer_of(found.config)


def test_other_folders_may_be_named(tmp_path):
    found = loaded(tmp_path, working_dir="/srv/my app", home="/")

    assert container_problems(found) == ()
    template = offer_of(found.config).templates["box"]
    assert (template.working_dir, template.home) == ("/srv/my app", "/")


def test_without_a_word_both_are_the_workspace(tmp_path):
    template = offer_of(loaded(tmp_path).config).templates["box"]

    assert (template.working_dir, template.home) == ("/workspace", "/workspace")


def test_a_container_is_made_with_them():
    body = build(dataclasses.replace(PLAN, working_dir="/srv/app", home="/srv/home"))

    assert body["WorkingDir"] == "/srv/app"
    assert "HOME=/srv/home" in body["Env"]


def test_the_engine_says_where_a_container_works():
    said = {
        "Id": "e",
        "Name": "/n",
        "Image": "sha256:i",
        "State": {"Status": "running", "Pid": 7, "ExitCode": 0},
        "Config": {"WorkingDir": "/srv/app"},
    }

    assert container_facts(said).working_dir == "/srv/app"
