"""The labels of a container in the engine, from which it can be known again after everything else is lost.

Anyone with the engine's socket can make a container with any labels. So all of ours are authenticated
together (docs/security.md, 83): the keeper makes a MAC over :func:`mac_text`, which is added as one more
label, and a container is adopted only when that is right. Pure.

The caller's own labels are inside one of ours: as labels of the engine's they would speak to other programs
on the host that act on labels.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from clawbox.containers.narrowing import ContainerGrant, ContainerLimits, Isolation
from clawbox.errors import FieldViolation, invalid_fields
from clawbox.network_rules import NetworkRule
from clawbox.policy import NetworkGrant

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX: Final = "clawbox."
INSTALLATION: Final = f"{PREFIX}installation"
"""Of the installation that made the container; the one label that containers are looked for by."""
CONTAINER_ID: Final = f"{PREFIX}container_id"
MAC: Final = f"{PREFIX}mac"
_TASK: Final = f"{PREFIX}task"
_POLICY: Final = f"{PREFIX}policy"
_DETAIL: Final = f"{PREFIX}detail"
_VERSION: Final = 1
_MAX_LABELS: Final = 64
_MAX_VALUE: Final = 256
_KEY: Final = re.compile(r"[a-z0-9][a-z0-9._/-]{0,62}")


@dataclass(frozen=True, slots=True)
class Identity:
    """Everything that a container's labels say."""

    installation: str
    container_id: str
    owner: str
    task: str
    image: str
    """The reference that was asked for."""
    image_id: str
    uid: int
    gid: int
    created_ms: int
    """When, in milliseconds since 1970."""
    grant: ContainerGrant
    image_digest: str = ""
    """Of :attr:`image` in its repository; empty when the engine knows none."""
    template: str = ""
    agent_id: str = ""
    request_id: str = ""
    workspace_id: str = ""
    workspace_read_only: bool = False
    workspace_kept: bool = False
    workspace_goes: bool = True
    """Whether the workspace is deleted with the container."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """The caller's own."""
    env_names: tuple[str, ...] = ()
    """Of the variables that the request set."""
    token_sha256: str = ""
    """Of the token that its programs show its sidecar, in hexadecimal."""
    stop_signal: str = "SIGTERM"


class ForeignLabelsError(Exception):
    """Labels that are not what this version writes, whoever wrote them."""


def check_labels(given: Mapping[str, str], *, at: str = "labels") -> None:
    """Check a caller's own labels: INVALID_FIELD with a violation for each that is wrong."""
    violations = []
    if len(given) > _MAX_LABELS:
        violations.append(FieldViolation(at, f"has more than {_MAX_LABELS} labels", "max_items"))
    else:
        for key, value in given.items():
            where = f"{at}[{ascii(key[:64])[1:-1]}]"
            if not _KEY.fullmatch(key):
                violations.append(FieldViolation(where, f"its key is not {_KEY.pattern}", "pattern"))
            elif key.startswith(PREFIX):
                violations.append(FieldViolation(where, f"{PREFIX} is clawbox's own", "reserved"))
            if len(value) > _MAX_VALUE:
                violations.append(
                    FieldViolation(where, f"has more than {_MAX_VALUE} characters", "max_length")
                )
    if violations:
        raise invalid_fields(violations)


def to_labels(identity: Identity) -> dict[str, str]:
    """The labels that say who a container is, without their MAC. The values are the same for the same."""
    detail: dict[str, object] = {
        "version": _VERSION,
        "owner": identity.owner,
        "template": identity.template,
        "agent_id": identity.agent_id,
        "request_id": identity.request_id,
        "image": identity.image,
        "image_id": identity.image_id,
        "user": [identity.uid, identity.gid],
        "created_ms": identity.created_ms,
        "workspace": [
            identity.workspace_id,
            identity.workspace_read_only,
            identity.workspace_kept,
            identity.workspace_goes,
        ],
        "labels": dict(identity.labels),
        "env_names": list(identity.env_names),
        "token_sha256": identity.token_sha256,
        "stop_signal": identity.stop_signal,
        "network": [rule.to_json() for rule in identity.grant.network.rules],
        "max_concurrent": identity.grant.network.max_concurrent,
        "credentials": sorted(identity.grant.credentials),
        "limits": {name: getattr(identity.grant.limits, name) for name in ContainerLimits.__slots__},
    }
    if identity.image_digest:
        # Absent and not empty: so were the labels of containers that are older than it.
        detail["image_digest"] = identity.image_digest
    return {
        INSTALLATION: identity.installation,
        CONTAINER_ID: identity.container_id,
        _TASK: identity.task,
        _POLICY: identity.grant.isolation.value,
        _DETAIL: _json(detail),
    }


def mac_text(labels: Mapping[str, str]) -> str:
    """What the MAC is over, in its one form: every label of ours but the MAC itself. Others do not matter."""
    return _json({key: value for key, value in labels.items() if _is_ours(key)})


def sealed(labels: Mapping[str, str], mac: bytes) -> dict[str, str]:
    """The labels with their MAC."""
    return {**labels, MAC: mac.hex()}


def mac_of(labels: Mapping[str, str]) -> bytes:
    """The MAC that labels carry; empty when they carry none that can be read."""
    text = labels.get(MAC, "")
    return bytes.fromhex(text) if re.fullmatch(r"(?:[0-9a-f]{2})+", text) else b""


def from_labels(labels: Mapping[str, str]) -> Identity:
    """Who a container is; only for labels whose MAC was found right.

    Raises ForeignLabelsError for what :func:`to_labels` does not write: another version's, for one.
    """
    try:
        detail = json.loads(labels[_DETAIL])
        if detail["version"] != _VERSION:
            raise ForeignLabelsError("the labels are of another version")
        identity = Identity(
            installation=labels[INSTALLATION],
            container_id=labels[CONTAINER_ID],
            task=labels[_TASK],
            owner=detail["owner"],
            template=detail["template"],
            agent_id=detail["agent_id"],
            request_id=detail["request_id"],
            image=detail["image"],
            image_id=detail["image_id"],
            image_digest=detail.get("image_digest", ""),
            uid=detail["user"][0],
            gid=detail["user"][1],
            created_ms=detail["created_ms"],
            workspace_id=detail["workspace"][0],
            workspace_read_only=detail["workspace"][1],
            workspace_kept=detail["workspace"][2],
            workspace_goes=detail["workspace"][3],
            labels=detail["labels"],
            env_names=tuple(detail["env_names"]),
            token_sha256=detail["token_sha256"],
            stop_signal=detail["stop_signal"],
            grant=ContainerGrant(
                isolation=Isolation(labels[_POLICY]),
                network=NetworkGrant(
                    tuple(NetworkRule.parse(rule, any_host=True) for rule in detail["network"]),
                    detail["max_concurrent"],
                ),
                credentials=frozenset(detail["credentials"]),
                limits=ContainerLimits(**detail["limits"]),
            ),
        )
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ForeignLabelsError(f"the labels cannot be read: {type(error).__name__}") from None
    if to_labels(identity) != {key: value for key, value in labels.items() if _is_ours(key)}:
        raise ForeignLabelsError("the labels are not as they were written")
    return identity


def _is_ours(key: str) -> bool:
    return key.startswith(PREFIX) and key != MAC


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
