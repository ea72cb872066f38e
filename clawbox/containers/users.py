"""Who runs in a container: numbers alone, never a name that an image could give a meaning. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from clawbox.errors import ClawboxError, Reason, invalid_field

_USER: Final = re.compile(r"(0|[1-9][0-9]{0,9})(?::(0|[1-9][0-9]{0,9}))?")
_LARGEST: Final = 2**31 - 1
"""The engine's."""
_NOBODY: Final = 65_534


@dataclass(frozen=True, slots=True)
class User:
    """A numeric user and group."""

    uid: int
    gid: int

    @classmethod
    def parse(cls, text: str, *, field: str = "user") -> User:
        """Read ``UID`` or ``UID:GID``, in decimal; a group left out is the one of the same number.

        Raises INVALID_FIELD. The engine would take a group left out from the image, or 0.
        """
        matched = _USER.fullmatch(text)
        if matched is None or any(int(number or 0) > _LARGEST for number in matched.groups()):
            raise invalid_field(field, "must be UID or UID:GID, decimal numbers", "pattern")
        uid = int(matched[1])
        return cls(uid, uid if matched[2] is None else int(matched[2]))

    def __str__(self) -> str:
        return f"{self.uid}:{self.gid}"


def exec_user(text: str, *, own: User, taken: range, field: str = "user") -> User:
    """Whom a process in a container runs as: ``own``, the container's user, where nothing is asked.

    Root, as user or group, only where the container's template made it the container's own. ``taken`` are the
    uids that sandboxes get: another sandbox's would share that one's limits (docs/security.md, 82). Raises
    INVALID_FIELD for what is no user, and POLICY_DENIED for one that it may not be.
    """
    if not text:
        return own
    asked = User.parse(text, field=field)
    refused = (
        (asked.uid == 0 and own.uid != 0)
        or (asked.gid == 0 and own.gid != 0)
        or (asked.uid in taken and asked.uid != own.uid)
        or (asked.gid in taken and asked.gid != own.gid)
    )
    if refused:
        raise ClawboxError(
            Reason.POLICY_DENIED,
            "{field}: a process in this container may not run as {entry}",
            field=field,
            entry=asked,
            layer="server",
        )
    return asked


def passwd_file(user: User, home: str) -> str:
    """The ``/etc/passwd`` of a container, which names its user ``sandbox`` (passwd(5))."""
    lines = [f"root:x:0:0:root:{home if user.uid == 0 else '/root'}:/bin/sh"]
    if user.uid not in {0, _NOBODY}:
        lines.append(f"sandbox:x:{user.uid}:{user.gid}:sandbox:{home}:/bin/sh")
    lines.append(
        f"nobody:x:{_NOBODY}:{_NOBODY}:nobody:{home if user.uid == _NOBODY else '/nonexistent'}:/bin/sh"
    )
    return "".join(f"{line}\n" for line in lines)


def group_file(user: User) -> str:
    """The ``/etc/group`` of a container (group(5))."""
    groups = {0: "root", _NOBODY: "nogroup"}
    groups.setdefault(user.gid, "sandbox")
    return "".join(f"{groups[gid]}:x:{gid}:\n" for gid in sorted(groups))
