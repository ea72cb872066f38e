"""Where programs of a template start, and where they are at home."""

from __future__ import annotations

from clawbox_client import Stdout

from tests.integration.containers_live.world import container, logged

SAY = ["sh", "-c", "pwd; echo $HOME; grep ^sandbox: /etc/passwd | cut -d: -f6"]


def test_a_template_says_where_its_programs_start_and_are_at_home(world):
    with container(world.ann, template="everything", command=SAY) as made:
        world.ann.wait_container(made.container_id, deadline=30)
        # The image has neither folder.
        assert logged(world.ann, made).split() == [b"/srv/app", b"/workspace/home", b"/workspace/home"]
    with container(world.ann, template="everything") as made:
        said = world.ann.run_command(made.container_id, SAY)
        assert said.stdout.split() == ["/srv/app", "/workspace/home", "/workspace/home"]
        with world.ann.exec(made.container_id, ["pwd"]) as process:
            written = b"".join(event.data for event in process if isinstance(event, Stdout))
        assert written == b"/srv/app\n"
        told = world.ann.run_command(made.container_id, ["sh", "-c", "pwd; cd; pwd"], working_dir="/tmp")
        assert told.stdout.split()[0] == "/tmp"


def test_a_request_may_set_another_home(world):
    with container(world.ann, template="everything", command=SAY, env={"HOME": "/tmp"}) as made:
        world.ann.wait_container(made.container_id, deadline=30)
        assert logged(world.ann, made).split()[:2] == [b"/srv/app", b"/tmp"]


def test_without_a_word_both_are_the_workspace(world):
    for options in ({"template": "bare"}, {}):
        with container(world.ann, command=SAY, **options) as made:
            world.ann.wait_container(made.container_id, deadline=30)
            assert set(logged(world.ann, made).split()) == {b"/workspace"}


def test_templates_tell_their_folders(world):
    bare, everything = world.ann.list_templates()
    assert (everything.working_dir, everything.home) == ("/srv/app", "/workspace/home")
    assert (bare.working_dir, bare.home) == ("/workspace", "/workspace")
