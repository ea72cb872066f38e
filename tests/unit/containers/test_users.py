"""Users are numbers, root is the template's to give, and nobody takes another sandbox's."""

import pytest

from clawbox.containers.users import User, exec_user, group_file, passwd_file
from clawbox.errors import ClawboxError, Reason

TAKEN = range(900_000, 910_000)
OWN = User(900_001, 900_001)


@pytest.mark.parametrize(
    ("text", "user"),
    [
        ("1000", User(1000, 1000)),
        ("1000:5", User(1000, 5)),
        ("0:0", User(0, 0)),
        ("2147483647", User(2**31 - 1, 2**31 - 1)),
    ],
)
def test_users_are_read_and_written(text, user):
    assert User.parse(text) == user
    assert User.parse(str(user)) == user


@pytest.mark.parametrize(
    "text",
    [
        "",
        "agent",
        "root",
        "-1",
        "+1",
        "01",
        "1000:",
        ":5",
        "1:2:3",
        "1 ",
        "1\n",
        "0x1",
        "１",
        "2147483648",
        "1:4294967296",
    ],
)
def test_rule_82_a_name_is_no_user(text):
    with pytest.raises(ClawboxError) as caught:
        User.parse(text)
    assert caught.value.reason is Reason.INVALID_FIELD


def test_a_process_runs_as_the_containers_user_where_nothing_is_asked():
    assert exec_user("", own=OWN, taken=TAKEN) == OWN
    assert exec_user(str(OWN), own=OWN, taken=TAKEN) == OWN
    assert exec_user("65534", own=OWN, taken=TAKEN) == User(65534, 65534)


@pytest.mark.parametrize("text", ["0", "0:0", "1000:0", "0:900001", "900002", "909999:1000", "1000:900002"])
def test_rule_82_a_process_is_never_root_by_request_nor_another_sandbox(text):
    with pytest.raises(ClawboxError) as caught:
        exec_user(text, own=OWN, taken=TAKEN)
    assert caught.value.reason is Reason.POLICY_DENIED


def test_where_the_template_says_root_a_process_may_be_root():
    assert exec_user("0", own=User(0, 0), taken=TAKEN) == User(0, 0)


@pytest.mark.parametrize("user", [OWN, User(1000, 0), User(0, 0), User(65534, 65534), User(1000, 65534)])
def test_rule_82_the_generated_files_name_every_number_once_and_its_home(user):
    entries = [line.split(":") for line in passwd_file(user, "/workspace").splitlines()]
    assert all(len(entry) == 7 for entry in entries)
    uids = [entry[2] for entry in entries]
    assert len(uids) == len(set(uids))
    [mine] = [entry for entry in entries if entry[2] == str(user.uid)]
    assert mine[5] == "/workspace"

    groups = [line.split(":") for line in group_file(user).splitlines()]
    assert [entry[2] for entry in groups].count(str(user.gid)) == 1
    assert all(len(entry) == 4 for entry in groups)
