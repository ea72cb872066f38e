"""What the entries of the credential file mean, both ways: a list of objects with five texts each. Pure.

What such an object cannot say is in one more entry, :data:`RULES_ENTRY`, which the Rust clawbox 0.1 keeps and
never sends. So whatever that program makes of the file, no credential goes further than its rules say
(docs/decisions/014-credential-file.md; docs/security.md, 38).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from clawbox.egress.credentials import (
    Attachment,
    BasicAttachment,
    Budget,
    Credential,
    HeaderAttachment,
    InvalidCredentialError,
    QueryAttachment,
    Secret,
)
from clawbox.network_rules import RuleError, canonical_host

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

RULES_ENTRY: Final = "clawbox:rules"
"""Name of the entry with what the others cannot say. No credential can be called so."""
_KEYS: Final = ("name", "value", "domain", "header_name", "header_prefix")

Entry = dict[str, str]


@dataclass(frozen=True, slots=True)
class Contents:
    """What is in the file."""

    credentials: tuple[Credential, ...] = ()
    broken: Mapping[str, str] = field(default_factory=dict)
    """Entries that cannot be used, by name, and why: a request that needs one fails (property 42)."""

    def get(self, name: str) -> Credential | None:
        """The credential of that name, if there is a usable one."""
        return next((one for one in self.credentials if one.name == name), None)


def is_entry(entry: object) -> bool:
    """Whether a value from JSON is an entry."""
    return isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in _KEYS)


def contents_of(entries: Sequence[Entry]) -> Contents:
    """What entries mean. Of two with one name, the last counts."""
    rules = _rules(entries)
    good: dict[str, Credential] = {}
    broken: dict[str, str] = {}
    for entry in entries:
        name = entry["name"]
        if name == RULES_ENTRY:
            continue
        good.pop(name, None)
        broken.pop(name, None)
        try:
            good[name] = _credential(entry, rules.get(name, {}) if isinstance(rules, dict) else None)
        except InvalidCredentialError as error:
            broken[name] = str(error)
    return Contents(tuple(good.values()), broken)


def with_credential(entries: Sequence[Entry], credential: Credential) -> list[Entry]:
    """The entries with one credential in place of whatever had its name."""
    rules = _rules(entries) or {}
    rule = _rule_of(credential)
    header = credential.attachment
    entry = {
        "name": credential.name,
        "value": credential.value.reveal(),
        # Empty where the Rust clawbox would send it further than it may go: no host is called so.
        "domain": "" if "hosts" in rule else credential.hosts[0],
        "header_name": header.name if isinstance(header, HeaderAttachment) else "",
        "header_prefix": header.prefix if isinstance(header, HeaderAttachment) else "",
    }
    others = [one for one in entries if one["name"] != credential.name]
    rules.pop(credential.name, None)
    return _with_rules([*others, entry], rules | ({credential.name: rule} if rule else {}))


def without_credential(entries: Sequence[Entry], name: str) -> list[Entry]:
    """The entries without a credential, and without what else was known of it."""
    rules = _rules(entries) or {}
    rules.pop(name, None)
    return _with_rules([one for one in entries if one["name"] != name], rules)


def _rules(entries: Sequence[Entry]) -> dict[str, Any] | None:
    """What the last rules entry says; None when it cannot be understood."""
    texts = [entry["value"] for entry in entries if entry["name"] == RULES_ENTRY]
    if not texts:
        return {}
    try:
        rules = json.loads(texts[-1])
    except (ValueError, RecursionError):
        return None
    return rules if isinstance(rules, dict) else None


def _credential(entry: Entry, rule: Any) -> Credential:
    if not isinstance(rule, dict):
        raise InvalidCredentialError("rules", "what else is known of it cannot be understood; add it again")
    header = HeaderAttachment(entry["header_name"], entry["header_prefix"])
    harmless = {key: rule[key] for key in ("env", "short") if key in rule}
    if entry["domain"]:
        # As the Rust clawbox wrote it, or would have: whatever else was known is void.
        try:
            hosts = (canonical_host(entry["domain"]),)
        except RuleError as error:
            raise InvalidCredentialError("domain", error.problems[0][1]) from None
        return _made(entry, hosts=hosts, attachment=header, **harmless)
    known = {"hosts", "ports", "path_prefixes", "methods", "plain_http", "budget", "basic", "query"}
    if not rule or not (known | harmless.keys()).issuperset(rule):
        raise InvalidCredentialError("domain", "it has no host, or rules that this version does not know")
    more = {key: value for key, value in rule.items() if key in known - {"basic", "query", "budget"}}
    attachment: Attachment = header
    if "basic" in rule:
        attachment = BasicAttachment(rule["basic"])
    elif "query" in rule:
        attachment = QueryAttachment(rule["query"])
    if "budget" in rule:
        more["budget"] = _budget(rule["budget"])
    return _made(entry, attachment=attachment, **more, **harmless)


def _budget(value: Any) -> Budget:
    try:
        return Budget(**value)
    except TypeError:
        raise InvalidCredentialError("budget", "it cannot be understood") from None


def _made(entry: Entry, **fields: Any) -> Credential:
    try:
        lists = {key: tuple(value) for key, value in fields.items() if isinstance(value, list)}
        return Credential(name=entry["name"], value=Secret(entry["value"]), **(fields | lists))
    except (TypeError, AttributeError):  # JSON of other types than ours
        raise InvalidCredentialError("rules", "they cannot be understood; add it again") from None


def _with_rules(entries: Sequence[Entry], rules: dict[str, Any]) -> list[Entry]:
    kept = [one for one in entries if one["name"] != RULES_ENTRY]
    names = {one["name"] for one in kept}
    value = {name: rule for name, rule in rules.items() if name in names}
    if not value:
        return kept
    text = json.dumps(value, separators=(",", ":"))
    return [
        *kept,
        {"name": RULES_ENTRY, "value": text, "domain": "", "header_name": "", "header_prefix": ""},
    ]


def _rule_of(credential: Credential) -> dict[str, Any]:
    """What the five texts cannot say; with ``hosts`` when the Rust clawbox must not send the credential."""
    rule: dict[str, Any] = {}
    match credential.attachment:
        case BasicAttachment(username):
            rule["basic"] = username
        case QueryAttachment(parameter):
            rule["query"] = parameter
    rule |= {
        key: list(value)
        for key, value in (("path_prefixes", credential.path_prefixes), ("methods", credential.methods))
        if value
    }
    if credential.ports != (443,):
        rule["ports"] = list(credential.ports)
    if credential.plain_http:
        rule["plain_http"] = True
    if (budget := credential.budget) is not None:
        rule["budget"] = {
            "requests": budget.requests,
            "bytes": budget.bytes,
            "window_seconds": budget.window_seconds,
        }
    if rule or len(credential.hosts) > 1:
        rule["hosts"] = list(credential.hosts)
    if credential.env is not None:
        rule["env"] = credential.env
    if credential.short:
        rule["short"] = True
    return rule
