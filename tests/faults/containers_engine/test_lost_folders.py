"""Where a container's processes start is known also when the state is lost."""

from __future__ import annotations

from tests.faults.containers_engine.world import client_of, kill, lose_state


def test_processes_start_in_the_templates_folder_when_the_state_was_lost(world, busybox_image):
    template = f'[images.templates.box]\nimage = "{busybox_image}"\nworking_dir = "/srv"\nhome = "/tmp"\n'
    with world.server(more=template) as server, client_of(server) as client:
        made = client.spawn("box", template="box", hold=True)
        assert client.run_command(made.container_id, ["pwd"]).stdout == "/srv\n"
        kill(server)
    lose_state(world)
    with world.server() as server, client_of(server) as client:
        said = client.run_command(made.container_id, ["sh", "-c", "pwd; echo $HOME"])
        assert said.stdout == "/srv\n/tmp\n"
        client.remove_container(made.container_id, force=True)
        world.nothing_left()
