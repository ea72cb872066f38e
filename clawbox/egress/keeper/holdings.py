"""What the keeper knows, and what each sidecar may know of it. Neither reads nor writes anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from clawbox.egress.credential_entries import Contents, contents_of
from clawbox.egress.keeper.messages import HandedOut, HandOut, Store, Stored
from clawbox.egress.keeper.secrets import Secrets
from clawbox.egress.vault import MasterKey, VaultError, decrypt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from clawbox.egress.credentials import Credential

MAX_KNOWN: Final = 1000
"""Values that one sandbox has or had. Beyond, those that it has no more are forgotten, the oldest first."""
NOT_THERE: Final = "there is no credential of that name"
NOT_READ: Final = "the credential file was not read yet"


@dataclass(slots=True)
class _Grant:
    """One sidecar: what it may know, and what it was sent last."""

    request: HandOut
    authority: bytes
    sent: Secrets | None = None


class Holdings:
    """The credentials, and who was given which; made once for a keeper."""

    def __init__(self, key: MasterKey | None, no_key: str, derive: Callable[[str], bytes]) -> None:
        """``no_key`` says why there is no key. ``derive`` gives the authority of a sandbox, as bytes."""
        self._key = key
        self._no_key = no_key
        self._derive = derive
        self._contents = Contents()
        self._by_name: dict[str, Credential] = {}
        self._fault = NOT_READ
        self._grants: dict[int, _Grant] = {}
        self._had: dict[str, dict[tuple[str, str], None]] = {}  # by sandbox, in the order of giving

    def __repr__(self) -> str:
        return "Holdings(…)"

    def store(self, store: Store) -> Stored:
        """Take another file in place of the last; what cannot be used leaves no credential usable."""
        contents, fault = Contents(), store.fault
        if not fault and store.data is not None:
            contents, fault = self._read(store.data)
        self._contents, self._fault = contents, fault
        self._by_name = {one.name: one for one in contents.credentials}
        return Stored(tuple(one.name for one in contents.credentials), dict(contents.broken), fault)

    def grant(self, request: HandOut) -> None:
        """From now on, what this asks for is that sidecar's."""
        self._grants[request.number] = _Grant(request, self._derive(request.sandbox))

    def dismiss(self, number: int) -> None:
        """That sidecar gets nothing any more."""
        self._grants.pop(number, None)

    def forget(self, sandbox: str) -> None:
        """Nothing that the sandbox had is remembered."""
        self._had.pop(sandbox, None)

    def news(self, number: int | None = None) -> Iterator[tuple[Secrets, HandedOut]]:
        """What that sidecar (None: each) is to be sent, if it differs from what it has; taken as sent."""
        for grant in self._grants.values() if number is None else (self._grants[number],):
            secrets, report = self._for(grant.request, grant.authority)
            if secrets != grant.sent:
                grant.sent = secrets
                yield secrets, report

    def _read(self, data: bytes) -> tuple[Contents, str]:
        if self._key is None:
            return Contents(), self._no_key
        try:
            return contents_of(decrypt(data, self._key)), ""
        except VaultError as error:
            return Contents(), error.fault.value

    def _for(self, request: HandOut, authority: bytes) -> tuple[Secrets, HandedOut]:
        """Only what is named in the request: what control said of that sidecar (docs/security.md, 44)."""
        given = {}
        missing = {}
        for name in request.credentials:
            if (credential := self._by_name.get(name)) is not None:
                given[name] = credential
            else:
                missing[name] = self._fault or self._contents.broken.get(name, NOT_THERE)
        had = self._had.setdefault(request.sandbox, {})
        current = dict.fromkeys((name, one.value.reveal()) for name, one in given.items())
        for pair in current:
            had[pair] = None
        while len(had) > MAX_KNOWN:
            del had[next(pair for pair in had if pair not in current)]
        retired = tuple(pair for pair in had if pair not in current)
        secrets = Secrets.of(given.values(), missing, retired, authority)
        return secrets, HandedOut(request.number, tuple(given), missing)
