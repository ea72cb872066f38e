"""Mount sources that no sandbox can swap, targets that hide nothing, working folders that are ones."""

import os
import stat

import pytest

from clawbox.containers.mounts import (
    Facts,
    Mount,
    MountError,
    check_mounts,
    check_source,
    check_working_dir,
    is_canonical,
)
from clawbox.errors import ClawboxError, Reason

ROOT = frozenset({0})
FOLDER = stat.S_IFDIR


def chain(**changed):
    """What is above /var/lib/clawbox/w, all of it root's and 0755, but for what is changed."""
    facts = {"/": (0o755, 0), "/var": (0o755, 0), "/var/lib": (0o755, 0), "/var/lib/box": (0o700, 0)}
    facts["/var/lib/box/w"] = (0o700, 900_001)
    facts |= {"/" + name.strip("_").replace("_", "/"): value for name, value in changed.items()}
    return [
        Facts(path, mode if stat.S_IFMT(mode) else FOLDER | mode, uid) for path, (mode, uid) in facts.items()
    ]


def refused(facts, source="/var/lib/box/w"):
    with pytest.raises(MountError) as caught:
        check_source(source, facts, trusted=ROOT)
    return str(caught.value)


def test_rule_78_a_source_below_folders_that_only_the_server_writes_is_mounted():
    check_source("/var/lib/box/w", chain(), trusted=ROOT)
    check_source("/var/lib/box/w", chain(var_lib=(0o755, 1000)), trusted=frozenset({0, 1000}))


def test_rule_78_a_folder_above_that_somebody_else_can_write_is_refused():
    assert "belongs to uid 900001" in refused(chain(var_lib_box=(0o755, 900_001)))
    assert "can be written by others" in refused(chain(var_lib=(0o775, 0)))
    assert "can be written by others" in refused(chain(var_lib=(0o757, 0)))
    # The sticky bit keeps others from moving what is root's, and does not keep a sandbox from its own.
    check_source("/var/lib/box/w", chain(var=(0o1777, 0)), trusted=ROOT)
    assert "can be written by others" in refused(chain(var_lib_box=(0o1777, 0)))


def test_rule_78_a_link_is_neither_a_source_nor_above_one():
    assert "is not a folder" in refused(chain(var_lib=(stat.S_IFLNK | 0o777, 0)))
    assert "neither a folder nor a file" in refused(chain(var_lib_box_w=(stat.S_IFLNK | 0o777, 0)))
    check_source("/var/lib/box/w", chain(var_lib_box_w=(stat.S_IFREG | 0o444, 0)), trusted=ROOT)


def test_rule_78_a_source_is_looked_at_from_the_root_down():
    assert "was not looked at" in refused(chain()[1:])
    assert "was not looked at" in refused(chain()[:-1])
    assert "was not looked at" in refused([])
    assert "was not looked at" in refused(chain(), "/var/lib/box/../box/w")


def test_rule_78_what_lstat_says_of_real_folders_is_enough(tmp_path):
    box = tmp_path / "box"
    box.mkdir(0o700)
    facts = []
    for path in [*reversed(box.parents), box]:
        seen = path.lstat()
        facts.append(Facts(str(path), seen.st_mode, seen.st_uid))

    check_source(str(box), facts, trusted=frozenset({0, os.getuid()}))


def test_rule_78_no_source_lies_within_another():
    run, workspace = Mount("/s/run", "/run/clawbox"), Mount("/s/w", "/workspace", read_only=False)
    check_mounts([run, workspace, Mount("/s/run2", "/etc/passwd")])

    for source in ("/s/run", "/s/run/passwd", "/s", "/s/w/deep"):
        with pytest.raises(MountError, match="within each other"):
            check_mounts([run, workspace, Mount(source, "/etc/passwd")])


def test_no_target_hides_another():
    for target in ("/run/clawbox", "/run/clawbox/x", "/run"):
        with pytest.raises(MountError, match="hide each other"):
            check_mounts([Mount("/a", "/run/clawbox"), Mount("/b", target)])


@pytest.mark.parametrize(
    "path", ["", "/", "a", "/a/", "/a//b", "/a/./b", "/a/../b", "/a/\0", "//a", "/" + "a/" * 2048]
)
def test_only_canonical_paths_are_mounted(path):
    for mount in (Mount(path, "/x"), Mount("/x", path)):
        with pytest.raises(MountError):
            check_mounts([mount])
    assert path == "/" or not is_canonical(path)


@pytest.mark.parametrize(
    "path", ["/", "/workspace", "/workspace/a b", "/process", "/sys2/x", "/.hidden", "/..."]
)
def test_a_working_folder_outside_the_kernels_is_taken(path):
    assert check_working_dir(path) == path


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/proc",
            "/proc/self/fd/7",
            "/proc/1/root",
            "/sys",
            "/sys/fs/cgroup",
            "/dev",
            "/dev/fd/7",
            "//proc/self",
        ),
        *("/workspace/../proc/self", "/./proc", "proc", "", "/workspace/", "/a\0", "/" + "a" * 4096),
    ],
)
def test_rule_85_a_working_folder_of_the_kernels_is_refused(path):
    with pytest.raises(ClawboxError) as caught:
        check_working_dir(path)
    assert caught.value.reason is Reason.INVALID_FIELD
    assert [violation.field for violation in caught.value.violations] == ["working_dir"]
