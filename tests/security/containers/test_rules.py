"""Rules of docs/security.md that a unit test cannot show whole: with a real engine, through a live server."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import ssl
import stat

import pytest
from clawbox_client import ClawboxError, SyncClient

from tests.containers_world import containers_server
from tests.footprint import eventually
from tests.security.containers.engine_between import EngineBetween

MIB = 1 << 20
ASK = (
    b"GET http://allowed.invalid/ HTTP/1.1\r\nHost: allowed.invalid\r\nProxy-Authorization: Bearer %s\r\n\r\n"
)
CONNECT = """
import socket, sys
sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[1])
sock.sendall(sys.stdin.buffer.read())
sock.settimeout(20)
print(sock.recv(4096).decode())
"""


def token(box):
    return box.run("sh", "-c", "echo -n $CLAWBOX_PROXY_TOKEN").encode()


def run_folder(server, box):
    return server.home / "containers" / box.container_id / "run"


def authorities(pem):
    context = ssl.create_default_context(cadata=pem)
    return {certificate["serialNumber"] for certificate in context.get_ca_certs()}


@pytest.fixture
def other(spawn, busybox_image):
    return spawn(image=busybox_image, hold=True)


def test_rule_73_a_container_trusts_its_own_authority_and_no_others(box, other):
    own, others = (one.run("cat", "/run/clawbox/ca.pem") for one in (box, other))
    (own_serial,), (other_serial,) = authorities(own), authorities(others)
    assert own_serial != other_serial
    for one, trusted, strange in ((box, own_serial, other_serial), (other, other_serial, own_serial)):
        bundle = authorities(one.run("cat", "/run/clawbox/bundle.pem"))
        assert trusted in bundle
        assert strange not in bundle


def test_rule_73_the_authority_is_the_same_with_the_next_server(tmp_path, engine_url, busybox_image):
    with containers_server(tmp_path / "clawbox", engine_url) as server:
        with SyncClient(server.address, token=server.token) as client:
            container_id = client.spawn("stays", image=busybox_image, hold=True).container_id
            before = client.run_command(container_id, ["cat", "/run/clawbox/ca.pem"]).stdout
        server.stop(signal.SIGKILL)
    with (
        containers_server(tmp_path / "clawbox", engine_url) as server,
        SyncClient(server.address, token=server.token) as client,
    ):
        assert client.run_command(container_id, ["cat", "/run/clawbox/ca.pem"]).stdout == before
        client.remove_container(container_id, force=True)
    assert "BEGIN CERTIFICATE" in before


def test_rule_74_the_token_is_of_no_use_to_a_process_that_is_not_in_the_container(box, server, leftovers):
    ask = ASK % token(box)
    # Of the container, one that an exec started: refused for the host that it asks for, so it was read.
    answer = box.run("python3", "-c", CONNECT, "/run/clawbox/proxy.sock", stdin=ask)
    assert answer.startswith("HTTP/1.1 403")
    with socket.socket(socket.AF_UNIX) as sock:
        folder = os.open(run_folder(server, box), os.O_PATH)
        try:
            sock.connect(f"/proc/self/fd/{folder}/proxy.sock")
        finally:
            os.close(folder)
        sock.settimeout(20)
        with contextlib.suppress(BrokenPipeError):
            sock.sendall(ask)
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(100) == b""
    rows = [row for row in leftovers.audit("egress_peer") if row["fields"]["sandbox"] == box.container_id]
    assert [row["decision"] for row in rows] == ["denied"]


def test_rule_74_the_token_of_another_container_is_refused(box, spawn, agent_image):
    theirs = spawn(image=agent_image, hold=True)
    ask = ASK % token(theirs)
    answer = box.run("python3", "-c", CONNECT, "/run/clawbox/proxy.sock", stdin=ask)
    assert answer.startswith("HTTP/1.1 407")


def test_rule_81_no_name_in_a_containers_folders_leads_outside(box, client, server):
    outside = server.home / "token"
    box.run("sh", "-euc", f"mkdir -p /workspace/t && cd /workspace/t && ln -s {outside} file && ln -s / root")
    box.run("sh", "-euc", "cd /workspace/t && ln -s /proc/1/root proc && ln -s ../../.. up && mkfifo pipe")
    for path in (
        "/workspace/t/file",
        f"/workspace/t/root{outside}",
        f"/workspace/t/up{outside}",
        "/workspace/t/proc/etc/passwd",
        "/workspace/t/pipe",
    ):
        with pytest.raises(ClawboxError) as refused:
            client.read_file(box.container_id, path)
        assert refused.value.reason in {"FILE_NOT_FOUND", "FILE_DENIED", "WRONG_STATE", "INVALID_FIELD"}
        with pytest.raises(ClawboxError):
            client.write_file(box.container_id, f"{path}/new", b"x")
    for area in ("/workspace", "/tmp"):
        client.write_file(box.container_id, f"{area}/t-own", b"own", mode=0o777)
        uid = box.engine["Config"]["User"]
        assert box.run("stat", "-c", "%u:%g %a", f"{area}/t-own") == f"{uid} 777\n"
    box.run("rm", "-r", "/workspace/t", "/workspace/t-own", "/tmp/t-own")


def test_rule_82_no_two_containers_have_the_same_user(box, other):
    assert box.engine["Config"]["User"] != other.engine["Config"]["User"]
    uid = box.engine["Config"]["User"].split(":")[0]
    assert f"x:{uid}:{uid}:" in box.run("cat", "/etc/passwd")


def test_rule_82_users_are_a_templates_to_give(spawn, client, box, other):
    root, pinned = spawn(template="root"), spawn(template="pinned")
    assert root.run("id", "-u") == "0\n"
    assert pinned.run("id", "-u", "-n") == pinned.run("whoami")
    assert pinned.run("id", "-u") == "1000\n"
    strange = other.engine["Config"]["User"]
    for user, reason in (
        ("0", "POLICY_DENIED"),
        ("0:0", "POLICY_DENIED"),
        (strange, "POLICY_DENIED"),
        ("root", "INVALID_FIELD"),
    ):
        with pytest.raises(ClawboxError) as refused:
            client.run_command(box.container_id, ["id"], user=user)
        assert refused.value.reason == reason, user


def test_rule_84_volumes_are_bounded_memory_and_nothing_of_them_is_left(spawn, client, images, engine_api):
    def volumes():
        found = json.loads(engine_api.call("GET", "/volumes"))["Volumes"] or []
        return {volume["Name"] for volume in found}

    before = volumes()
    box = spawn(image=images(['VOLUME ["/data", "/var/lib/more/"]']), hold=True)
    assert not volumes() - before
    for path in ("/data", "/var/lib/more"):
        told = box.run("df", "-k", path).splitlines()[-1].split()
        assert (told[0], int(told[1])) == ("tmpfs", 64 * 1024)
        assert box.run("sh", "-c", f"echo hi > {path}/new && cat {path}/new") == "hi\n"
        options = box.run("sh", "-c", f"grep ' {path} ' /proc/self/mounts")
        assert {"nosuid", "nodev", "noexec"} <= set(options.split()[3].split(","))
    client.remove_container(box.container_id, force=True)
    assert not volumes() - before


@pytest.mark.parametrize("path", ["/workspace/data", "/run/clawbox", "/tmp", "/proc/x", "/", "/dev/shm"])
def test_rule_84_a_volume_over_what_is_mounted_makes_no_container(client, images, leftovers, path):
    before = leftovers.containers()
    with pytest.raises(ClawboxError) as refused:
        client.spawn("a volume", image=images([f'VOLUME ["{path}"]']), hold=True)
    assert refused.value.reason == "IMAGE_REFUSED"
    assert leftovers.containers() == before


IMAGE = (
    "ENV LD_PRELOAD=/evil.so LD_LIBRARY_PATH=/evil BASH_ENV=/evil ENV=/evil NODE_OPTIONS=--require=/evil",
    "ENV HTTP_PROXY=http://evil.invalid https_proxy=http://evil.invalid ALL_PROXY=http://evil.invalid",
    "ENV NO_PROXY=* SSL_CERT_FILE=/evil.pem CLAWBOX_CONTAINER_ID=evil CLAWBOX_NEW=evil MINE=stays",
    "HEALTHCHECK CMD touch /workspace/unhealthy",
    'ENTRYPOINT ["/bin/sleep"]',
    'CMD ["1000"]',
    "WORKDIR /etc",
)


def test_rule_85_what_an_image_sets_changes_neither_the_way_out_nor_what_runs_first(spawn, images):
    box = spawn(image=images(IMAGE))
    assert box.engine["Config"]["Entrypoint"] == ["/run/clawbox/gate"]
    assert box.engine["Config"]["StopSignal"] == "SIGTERM"
    assert "Health" not in box.engine["State"]
    of_the_program = "for p in /proc/[0-9]*; do [ $(cat $p/comm) != sleep ] || cat $p/environ; done"
    for script in ("env", f"({of_the_program}) | tr '\\0' '\\n'"):
        found = box.run("sh", "-c", script).splitlines()
        told = dict(line.split("=", 1) for line in found if "=" in line)
        assert "evil" not in json.dumps(told)
        assert told["HTTP_PROXY"] == told["https_proxy"] == "http://127.0.0.1:3128"
        assert told["SSL_CERT_FILE"] == "/run/clawbox/bundle.pem"
        assert told["CLAWBOX_CONTAINER_ID"] == box.container_id
        assert told["LD_PRELOAD"] == told["BASH_ENV"] == told["ALL_PROXY"] == ""
        assert told["MINE"] == "stays"
    assert box.run("pwd") == "/workspace\n"


@pytest.mark.parametrize("folder", ["/proc/self/fd/8", "/sys/fs", "/dev/fd/7"])
def test_rule_85_an_image_whose_folder_is_the_kernels_makes_no_container(client, images, folder):
    with pytest.raises(ClawboxError) as refused:
        client.spawn("a folder", image=images([f"WORKDIR {folder}"]), hold=True)
    assert refused.value.reason == "IMAGE_REFUSED"


def test_rule_85_the_status_warns_of_a_runc_with_known_flaws(client, engine_api):
    details = json.loads(engine_api.call("GET", "/version"))["Components"]
    (version,) = (one["Version"] for one in details if one["Name"] == "runc")
    numbers = tuple(map(int, re.findall(r"\d+", version)[:3]))
    (docker,) = (one for one in client.status().components if one.name == "docker")
    assert ("CVE-2024-21626" in docker.detail) == (numbers < (1, 1, 12))
    assert ("CVE-2025-31133" in docker.detail) == (numbers < (1, 2, 8) or (1, 3) <= numbers < (1, 3, 3))


TAKE_THE_PORT = """
import socket, time
while True:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(("127.0.0.1", 3128))
        sock.listen()
    except OSError:
        sock.close()
        time.sleep(0.005)
    else:
        open("/workspace/taken", "w").close()
        time.sleep(1000)
"""


def test_rule_87_a_program_that_took_the_port_harms_itself_alone(tmp_path, engine_url, agent_image):
    home = tmp_path / "clawbox"
    with (
        containers_server(home, engine_url) as server,
        SyncClient(server.address, token=server.token) as client,
    ):
        command = ["python3", "-c", TAKE_THE_PORT]
        container = client.spawn("takes the port", image=agent_image, command=command)
        assert container.egress == "ready"
        server.stop(signal.SIGKILL)
    # As long as a sidecar lives the port is its own; then it is whose is first.
    eventually(lambda: list((home / "workspaces").rglob("taken")), 20)
    with (
        containers_server(home, engine_url) as server,
        SyncClient(server.address, token=server.token) as client,
    ):
        found = client.get_container(container.container_id)
        assert (found.state.name, found.egress) == ("RUNNING", "proxy_port_taken")
        script = "echo -n $CLAWBOX_PROXY_TOKEN"
        told = client.run_command(container.container_id, ["sh", "-c", script]).stdout
        ask = ASK % told.encode()
        answer = client.run_command(
            container.container_id, ["python3", "-c", CONNECT, "/run/clawbox/proxy.sock"], stdin=ask
        )
        assert answer.stdout.startswith("HTTP/1.1 403")
        client.remove_container(container.container_id, force=True)


def test_rule_88_the_run_folder_is_as_nobody_but_root_can_make_it(box, server):
    folder = run_folder(server, box)
    kinds = {"gate": (stat.S_IFREG, 0o555), "go": (stat.S_IFIFO, 0o444), "proxy.sock": (stat.S_IFSOCK, 0o666)}
    kinds |= {"ca.pem": (stat.S_IFREG, 0o444), "bundle.pem": (stat.S_IFREG, 0o444)}
    for name, (kind, mode) in kinds.items():
        found = (folder / name).lstat()
        assert (stat.S_IFMT(found.st_mode), stat.S_IMODE(found.st_mode), found.st_uid) == (kind, mode, 0)
    assert stat.S_IMODE(folder.lstat().st_mode) == 0o555
    assert all(path.lstat().st_uid == 0 for path in folder.rglob("*"))
    assert stat.S_IMODE(server.home.lstat().st_mode) & 0o077 == 0 or (
        stat.S_IMODE((server.home / "containers").lstat().st_mode) == 0o700
    )
    for command in (
        "rm /run/clawbox/gate",
        "touch /run/clawbox/new",
        "chmod 777 /run/clawbox/go",
        "mv /run/clawbox/proxy.sock /run/clawbox/other",
        "ln -s /etc/passwd /run/clawbox/link",
    ):
        done = box.client.run_command(box.container_id, ["sh", "-c", command])
        assert done.exit_code != 0, command
    # Nobody who is that user on the host gets as far as the socket.
    uid = int(box.engine["Config"]["User"].split(":")[0])
    pid = os.fork()
    if pid == 0:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
        try:
            os.open(folder, os.O_PATH)
        except PermissionError:
            os._exit(42)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42


def test_rule_89_a_name_that_is_given_to_another_image_meanwhile_is_not_looked_up_again(
    tmp_path, engine_url, engine_api, images
):
    wanted, evil = images(["ENV WHICH=wanted"]), images(["ENV WHICH=evil"])
    wanted_id = engine_api.image(wanted)["Id"]
    repository, _, tag = wanted.rpartition(":")

    def move_the_name():
        engine_api.call("POST", f"/images/{evil}/tag", {"repo": repository, "tag": tag})

    with (
        EngineBetween(engine_url, tmp_path / "e.sock", {b"/containers/create": move_the_name}) as between,
        containers_server(tmp_path / "clawbox", between.url) as server,
        SyncClient(server.address, token=server.token) as client,
    ):
        container = client.spawn("the right one", image=wanted, hold=True)
        said = client.run_command(container.container_id, ["sh", "-c", "echo $WHICH"]).stdout
        client.remove_container(container.container_id, force=True)
    assert engine_api.image(wanted)["Id"] == engine_api.image(evil)["Id"] != wanted_id
    assert (container.image_id, said) == (wanted_id, "wanted\n")
    engine_api.remove_image(wanted_id)
