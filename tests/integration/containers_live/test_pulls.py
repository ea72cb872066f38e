"""Images that are not there: pulled where the operator lets it, with progress for whoever watches."""

from __future__ import annotations

import io
import os
import tarfile
import threading
import uuid

import grpc
import pytest
from clawbox_client import ContainerChanged, ContainersSnapshot, ContainerState
from clawbox_client.v1 import containers_pb2 as pb

from tests.engine.images import busybox_layer
from tests.integration.containers_live.world import container, refused, running, until


@pytest.fixture
def pushed(registry, engine_api):
    """Pushes images with a large layer besides; what the engine has of them is removed in the end."""
    references = []

    def push(name=None, tag="latest"):
        name = name or f"box-{uuid.uuid4().hex[:8]}"
        digest, layers = registry.push(
            name, tag, [busybox_layer(), _noise()], {"Cmd": ["sleep", "1000"], "Env": ["PATH=/bin"]}
        )
        references.append(f"{registry.host}/{name}:{tag}")
        return references[-1], digest, layers

    yield push
    for reference in references:
        engine_api.remove_image(reference)


def _noise():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        entry = tarfile.TarInfo("noise")
        entry.size = 1 << 20
        tar.addfile(entry, io.BytesIO(os.urandom(1 << 20)))
    return out.getvalue()


def test_a_missing_image_is_pulled_once_and_its_progress_told(pulling, registry, pushed):
    reference, _, _ = pushed()
    request_id = uuid.uuid4().hex
    pulls, states, over = [], [], threading.Event()
    registry.held.clear()
    registry.reached.clear()
    with pulling.ann.watch_containers(request_id=request_id) as watch:
        assert isinstance(next(watch), ContainersSnapshot)

        def read():
            for event in watch:
                if isinstance(event, ContainerChanged):
                    states.append(event.container.state)
                    if event.container.pull is not None:
                        pulls.append(event.container.pull)
                        registry.held.set()
                    if event.container.state is ContainerState.RUNNING:
                        over.set()

        reading = threading.Thread(target=read)
        reading.start()
        with container(pulling.ann, image=reference, hold=False, command=(), request_id=request_id) as made:
            assert over.wait(30)
            assert made.pull is None
            assert made.command == ("sleep", "1000")
            watch.close()
            reading.join()
    assert pulls
    assert all(pull.received_bytes <= pull.total_bytes or not pull.total_bytes for pull in pulls)
    assert max(pull.total_bytes for pull in pulls) > 0
    assert states[0] is ContainerState.CREATING
    asked = len(registry.asked)
    with container(pulling.ann, image=reference, hold=False, command=()):
        assert len(registry.asked) == asked, "it is there already"


def test_a_digest_is_what_it_says(pulling, pushed):
    reference, digest, _ = pushed()
    by_digest = f"{reference.rsplit(':', 1)[0]}@{digest}"
    with container(pulling.ann, image=by_digest) as made:
        assert made.image == by_digest
        assert made.image_digest == digest
        assert made.image_id.startswith("sha256:")
    wrong = by_digest[:-4] + ("0000" if not by_digest.endswith("0000") else "1111")
    assert refused(lambda: pulling.ann.spawn("x", image=wrong, hold=True)).reason == "IMAGE_NOT_FOUND"


def test_what_a_tag_stood_for_is_kept_with_the_container(pulling, pushed, world):
    reference, digest, _ = pushed()
    with container(pulling.ann, image=reference) as made:
        assert made.image == reference
        assert made.image_digest == digest
        assert made.image_id != digest
        spawned = until(
            lambda: [row for row in pulling.audit("container_spawn") if made.container_id in str(row)]
        )
        assert spawned[0]["fields"]["image_digest"] == digest
        shown = pulling.clawbox("get", made.container_id).stdout
        assert digest in shown
        # The tag may move; this names what runs.
        again = f"{made.image}@{made.image_digest}"
        with container(pulling.ann, image=again) as same:
            assert same.image_id == made.image_id
    # What was imported into the engine has been in no registry.
    with container(world.ann) as imported:
        assert imported.image_digest == ""


def test_an_image_that_nobody_has(pulling, registry):
    error = refused(lambda: pulling.ann.spawn("x", image=f"{registry.host}/nobody:1", hold=True))
    assert error.reason == "IMAGE_NOT_FOUND"
    assert list(pulling.ann.list_containers(include_finished=True)) == []


def test_a_spawn_that_is_cancelled_while_it_pulls_leaves_nothing(pulling, registry, pushed):
    reference, _, _ = pushed()
    registry.held.clear()
    registry.reached.clear()
    request = pb.SpawnRequest(task="x", image=reference, hold=True)
    call = pulling.stub.Spawn.future(request, **pulling.as_("ann"))
    try:
        assert registry.reached.wait(30)
        until(lambda: list(pulling.ann.list_containers()))
        call.cancel()
        with pytest.raises(grpc.FutureCancelledError):
            call.result()
        until(lambda: not list(pulling.ann.list_containers(include_finished=True)))
    finally:
        registry.held.set()


def test_one_that_is_being_made_is_ended_by_cancelling_its_spawn_alone(pulling, registry, pushed):
    reference, _, _ = pushed()
    registry.held.clear()
    registry.reached.clear()
    request = pb.SpawnRequest(task="x", image=reference, hold=True)
    call = pulling.stub.Spawn.future(request, **pulling.as_("ann"))
    try:
        assert registry.reached.wait(30)
        until(lambda: list(pulling.ann.list_containers()))
        (made,) = pulling.ann.list_containers()
        assert made.state is ContainerState.CREATING
        for end in (
            lambda: pulling.ann.stop_container(made.container_id),
            lambda: pulling.ann.kill_container(made.container_id),
            lambda: pulling.ann.remove_container(made.container_id),
            lambda: pulling.ann.remove_container(made.container_id, force=True),
        ):
            assert refused(end).reason == "WRONG_STATE"
        assert pulling.ann.get_container(made.container_id).state is ContainerState.CREATING
        call.cancel()
        until(lambda: not list(pulling.ann.list_containers(include_finished=True)))
    finally:
        registry.held.set()


def test_never_pulls_nothing(world):
    before = refused(lambda: world.ann.spawn("x", image="clawbox-test/not-there:1", hold=True))
    assert before.reason == "IMAGE_NOT_FOUND"


def test_always_takes_what_a_tag_means_now(tmp_path, engine_url, world, registry, pushed):
    home = tmp_path / "clawbox"
    settings = {"pull_policy": "always", "registry": registry.host}
    with running(home, engine_url, world.image, world.outside, **settings) as always:
        reference, _, _ = pushed("moves")
        with container(always.ann, image=reference) as first:
            pushed("moves")
            with container(always.ann, image=reference) as second:
                assert first.image_id != second.image_id
