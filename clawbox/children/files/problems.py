"""What a caller is told of why something was not done in a sandbox's folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from clawbox.children.files.messages import Problem
from clawbox.errors import ClawboxError, Reason, invalid_field

if TYPE_CHECKING:
    from clawbox.children.files.messages import Failed

_WRONG_STATE: Final = {
    Problem.NOT_A_FOLDER: "is not a folder, or something above it is not",
    Problem.IS_A_FOLDER: "is a folder",
    Problem.NOT_REGULAR: "is not a regular file",
    Problem.NOT_EMPTY: "is not empty",
    Problem.CHANGED: "is being moved or used by something inside",
}
_LIMITS: Final = {
    Problem.TOO_LARGE: "has more bytes than allowed",
    Problem.TOO_MANY: "has more entries than allowed",
    Problem.NO_SPACE: "does not fit: no space is left, or the sandbox's share is used up",
}


def problem_error(path: bytes, failed: Failed) -> ClawboxError:
    """The error for what a child reports about ``path``, which is shown without control characters."""
    shown = ascii(path.decode(errors="backslashreplace"))[1:-1]
    problem = failed.problem
    match problem:
        case Problem.NOT_FOUND:
            return ClawboxError(Reason.FILE_NOT_FOUND, "there is no {path}", path=shown)
        case Problem.EXISTS:
            return ClawboxError(Reason.FILE_EXISTS, "there is {path} already", path=shown)
        case Problem.DENIED:
            return ClawboxError(
                Reason.FILE_DENIED, "the sandbox's user may not do this to {path}", path=shown
            )
        case Problem.OUTSIDE:
            return invalid_field("path", "leads outside, or to another file system", "path")
        case Problem.NAME_TOO_LONG:
            return invalid_field("path", "has a name that is too long for the file system", "path")
        case Problem.WRONG_SIZE:
            return invalid_field("size_bytes", "is not how many bytes were sent", "size")
        case Problem.UNSUPPORTED:
            return ClawboxError(Reason.SANDBOX_UNAVAILABLE, "files of sandboxes need Linux 5.6 (openat2)")
    if problem in _LIMITS:
        return ClawboxError(Reason.FILE_LIMIT, "{path} {why}", path=shown, why=_LIMITS[problem])
    if problem in _WRONG_STATE:
        return ClawboxError(
            Reason.WRONG_STATE,
            "{path} {why}",
            precondition=("FILE", shown),
            path=shown,
            why=_WRONG_STATE[problem],
        )
    return ClawboxError(
        Reason.INTERNAL, "the file system refused {path} (error {errno})", path=shown, errno=failed.errno
    )
