"""What the engine says of an image, and what of it no sandbox takes. Pure.

An image is a stranger's: its labels would become the container's, its volumes writable folders of the host,
its working folder a place where the engine itself goes (docs/security.md, 83, 84 and 85).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from clawbox.containers.gate import FOLDER
from clawbox.containers.mounts import TMP, WORKSPACE, is_canonical, is_working_dir, overlap
from clawbox.errors import ClawboxError, Reason

if TYPE_CHECKING:
    from collections.abc import Iterator

LABEL_PREFIX: Final = "clawbox."
DEFAULT_STOP_SIGNAL: Final = "SIGTERM"
MAX_VOLUMES: Final = 16
_NO_VOLUMES: Final = (WORKSPACE, FOLDER, TMP, "/proc", "/sys", "/dev", "/etc")
"""Where a container has mounts of its own, or what those would hide."""
_STOP_SIGNAL: Final = re.compile(r"(?:SIG)?(HUP|INT|QUIT|TERM|USR1|USR2|WINCH|KILL|RTMIN\+[0-9]{1,2})")


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """The part of an image's configuration that means something here."""

    image_id: str
    """``sha256:`` and 64 hexadecimal digits."""
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
    """``NAME=value``."""
    volumes: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    """Keys alone."""
    working_dir: str = ""
    stop_signal: str = ""


def check_image(facts: ImageFacts) -> None:
    """Raise IMAGE_REFUSED for an image that asks for what no sandbox may have, with all that is wrong."""
    problems = list(_problems(facts))
    if problems:
        raise ClawboxError(
            Reason.IMAGE_REFUSED,
            "the image {image} cannot be used: {problems}",
            image=facts.image_id,
            problems="; ".join(problems[:8]),
        )


def stop_signal(facts: ImageFacts) -> str:
    """The signal that asks the image's program to end: its own where that is one, else SIGTERM."""
    matched = _STOP_SIGNAL.fullmatch(facts.stop_signal)
    return DEFAULT_STOP_SIGNAL if matched is None else f"SIG{matched[1]}"


def _problems(facts: ImageFacts) -> Iterator[str]:
    for label in facts.labels:
        if label.lower().startswith(LABEL_PREFIX):
            yield f"its label {_shown(label)} is clawbox's own"
    if len(facts.volumes) > MAX_VOLUMES:
        yield f"it has more than {MAX_VOLUMES} volumes"
    for volume in facts.volumes:
        # A final slash is how many write it.
        path = volume.rstrip("/") or "/"
        if not is_canonical(path):
            yield f"its volume {_shown(volume)} is no canonical path"
        elif any(overlap(path, taken) for taken in _NO_VOLUMES):
            yield f"its volume {_shown(volume)} would hide what clawbox mounts"
    working_dir = facts.working_dir.rstrip("/") or "/"
    if facts.working_dir and not is_working_dir(working_dir):
        yield f"its working folder {_shown(facts.working_dir)} is not one"


def _shown(text: str) -> str:
    shown = ascii(text)
    return shown if len(shown) <= 80 else shown[:77] + "..."
