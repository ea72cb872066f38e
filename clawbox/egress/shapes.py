"""Strings that look like credentials, and phrases that try to steer a model: what they are, and finding them.

Shapes need no secrets, so anything may look for them. Every pattern is RE2 (linear in the length of the
text, whatever the text is) over bytes, ASCII only, so that a match never begins or ends inside a UTF-8
sequence. Some are those of the Rust clawbox 0.1; each names where its format is from.

Only formats that an issuer publishes, with a prefix of their own, are shapes: no rule guesses by entropy,
since what a request is refused for must be explicable. RE2 has no look-around; what a shape needs besides (a
checksum, what may not stand before it) is looked at in a second step on what was found.
"""

from __future__ import annotations

import enum
import functools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import re2

from clawbox.egress.checksums import (
    bech32_checksum,
    begins_with_a_snowflake,
    github_checksum,
    grafana_checksum,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MAX_MEM = 64 << 20
"""Bytes that RE2 may use for the automaton of one pattern. With less, a text made for it throws the cache of
states away again and again and slows the search two-hundredfold."""


class Kind(enum.Enum):
    """What a pattern finds."""

    CREDENTIAL = "credential"
    """Something in an issuer's own format: looked for everywhere."""
    KNOWN = "known"
    """A secret that is known: looked for everywhere, in every encoding."""
    GENERIC = "generic"
    """``password=…`` and the like: for tool output only, since ordinary logins look the same."""
    INJECTION = "injection"
    """A phrase that tells a model to do something else: for tool output only."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """One thing to look for."""

    name: str
    """``github_personal_token`` for one; it is in reports, so it never changes."""
    expression: bytes
    """RE2, ASCII, without groups that capture."""
    kind: Kind
    source: str
    """Where the format is from."""
    check: Callable[[bytes], bool] | None = None
    """Whether the checksum in what was found is right; None: the format has none that is published."""
    not_after: tuple[bytes, ...] = ()
    """What may not stand right before it."""
    lines: bool = False
    """Whether it goes on over line ends."""

    @property
    def rest(self) -> re.Pattern[bytes]:
        """What still belongs to it, when it ends where a stream's window ends."""
        return _LINES if self.lines else _TOKEN


_TOKEN = re.compile(rb"[\w\-.~+/=]*", re.ASCII)
_LINES = re.compile(rb"(?:[a-zA-Z0-9+/=\s]|\\[nr])*", re.ASCII)


_RUST = "Rust clawbox 0.1"

_GITHUB = (
    "GitHub docs, “GitHub's token formats”; its blog, “Behind GitHub's new authentication token formats”"
)

CREDENTIAL_SHAPES = (
    Pattern(
        "sk_api_key",
        rb"sk-[a-zA-Z0-9]{20,}",
        Kind.CREDENTIAL,
        f"{_RUST}; OpenAI secret keys before 2024",
    ),
    Pattern(
        "github_personal_token",
        rb"ghp_[a-zA-Z0-9]{36}",
        Kind.CREDENTIAL,
        f"{_RUST}; {_GITHUB}",
        check=github_checksum,
    ),
    Pattern(
        "github_server_token",
        rb"ghs_[a-zA-Z0-9]{36}",
        Kind.CREDENTIAL,
        f"{_RUST}; {_GITHUB}",
        check=github_checksum,
    ),
    Pattern(
        "github_user_token",
        rb"gh[ou]_[a-zA-Z0-9]{36}",
        Kind.CREDENTIAL,
        f"{_GITHUB}: OAuth and user-to-server tokens",
        check=github_checksum,
    ),
    Pattern(
        "github_refresh_token",
        rb"ghr_[a-zA-Z0-9]{36,76}",
        Kind.CREDENTIAL,
        f"{_GITHUB}: refresh tokens",
    ),
    Pattern(
        "github_fine_grained_token",
        rb"\bgithub_pat_[a-zA-Z0-9]{22}_[a-zA-Z0-9]{59}",
        Kind.CREDENTIAL,
        _GITHUB,
    ),
    Pattern(
        "gitlab_token",
        rb"\bgl(?:pat|oas|dt|rt|rtr|cbt|ptt|ft|imt|agent|soat|ffct|wt)-[a-zA-Z0-9_-]{20,}(?:\.[a-z0-9]{2}\.?[a-z0-9]{7,9})?",
        Kind.CREDENTIAL,
        "GitLab docs, “Token overview”: token prefixes, routable tokens included",
    ),
    Pattern(
        "slack_token",
        rb"xox[bprs]-[a-zA-Z0-9\-]+",
        Kind.CREDENTIAL,
        f"{_RUST}; Slack docs, “Token types”",
    ),
    Pattern(
        "slack_app_token",
        rb"\bxapp-[0-9]-[A-Z0-9]+-[0-9]+-[a-f0-9]{32,}",
        Kind.CREDENTIAL,
        "Slack docs, “Token types”: app-level tokens",
    ),
    Pattern(
        "slack_refresh_token",
        rb"\bxoxe(?:\.xox[bp])?-[0-9]-[a-zA-Z0-9]{100,}",
        Kind.CREDENTIAL,
        "Slack docs, “Token rotation”",
    ),
    Pattern(
        "openai_api_key",
        rb"\bsk-(?:proj|svcacct|admin)-[a-zA-Z0-9_-]{20,}T3BlbkFJ[a-zA-Z0-9_-]{20,}",
        Kind.CREDENTIAL,
        "OpenAI docs, project, service account and admin keys; the middle is base64 of “OpenAI”",
    ),
    Pattern(
        "anthropic_api_key",
        rb"\bsk-ant-[a-z]+[0-9]{2}-[a-zA-Z0-9_-]{80,}",
        Kind.CREDENTIAL,
        "Anthropic docs, API and admin keys; GitHub secret scanning partner patterns",
    ),
    Pattern(
        "google_api_key",
        rb"\bAIza[a-zA-Z0-9_-]{35}",
        Kind.CREDENTIAL,
        "Google Cloud docs, “API keys overview”",
    ),
    Pattern(
        "google_oauth_token",
        rb"\bya29\.[a-zA-Z0-9_-]{20,}",
        Kind.CREDENTIAL,
        "Google Cloud docs, “Token types”: access tokens",
    ),
    Pattern(
        "google_client_secret",
        rb"\bGOCSPX-[a-zA-Z0-9_-]{28}",
        Kind.CREDENTIAL,
        "Google Identity docs, OAuth client secrets",
    ),
    Pattern(
        "aws_access_key_id",
        rb"\b(?:AKIA|ASIA)[A-Z2-7]{16}\b",
        Kind.CREDENTIAL,
        "AWS IAM docs, “IAM identifiers”; not where a signed URL or request (SigV4) names its signer",
        not_after=(b"Credential=", b"Credential%3D", b"AWSAccessKeyId="),
    ),
    Pattern(
        "aws_secret_access_key",
        rb"""(?i)aws_secret_access_key\\?["']?\s{0,8}[:=]\s{0,8}\\?["']?[a-z0-9/+]{40}""",
        Kind.CREDENTIAL,
        "AWS CLI docs, configuration files and environment variables",
    ),
    Pattern(
        "aws_bedrock_api_key",
        rb"\bABSK[a-zA-Z0-9+/]{109,269}={0,2}",
        Kind.CREDENTIAL,
        "Amazon Bedrock docs, long-term API keys",
    ),
    Pattern(
        "azure_storage_key",
        rb"(?i)AccountKey=[a-z0-9+/]{86}==",
        Kind.CREDENTIAL,
        "Azure Storage docs, “Configure connection strings”: 64 bytes in base64",
    ),
    Pattern(
        "azure_client_secret",
        rb"\b[a-zA-Z0-9_~.-]{3}[0-9]Q~[a-zA-Z0-9_~.-]{31,34}",
        Kind.CREDENTIAL,
        "Microsoft Purview, “Azure AD client secret” entity definition",
    ),
    Pattern(
        "stripe_key",
        rb"\b[sr]k_(?:live|test)_[a-zA-Z0-9]{24,}",
        Kind.CREDENTIAL,
        "Stripe docs, “API keys”: secret and restricted keys",
    ),
    Pattern(
        "stripe_webhook_secret",
        rb"\bwhsec_[a-zA-Z0-9+/]{32,}",
        Kind.CREDENTIAL,
        "Stripe docs, “Webhooks”: endpoint secrets",
    ),
    Pattern(
        "sendgrid_key",
        rb"\bSG\.[a-zA-Z0-9_-]{22}\.[a-zA-Z0-9_-]{43}",
        Kind.CREDENTIAL,
        "Twilio SendGrid docs, API keys: 69 characters",
    ),
    Pattern(
        "npm_token",
        rb"\bnpm_[a-zA-Z0-9]{36}",
        Kind.CREDENTIAL,
        "GitHub blog, “Announcing npm’s new access token format”",
        check=github_checksum,
    ),
    Pattern(
        "pypi_token",
        rb"\bpypi-AgE[a-zA-Z0-9_-]{50,}",
        Kind.CREDENTIAL,
        "PyPI docs, API tokens: a macaroon (version 2) in base64url",
    ),
    Pattern(
        "rubygems_key",
        rb"\brubygems_[a-f0-9]{48}",
        Kind.CREDENTIAL,
        "RubyGems guides, API keys",
    ),
    Pattern(
        "docker_hub_token",
        rb"\bdckr_(?:pat|oat)_[a-zA-Z0-9_-]{27,}",
        Kind.CREDENTIAL,
        "Docker docs, personal and organization access tokens",
    ),
    Pattern(
        "huggingface_token",
        rb"\bhf_[a-zA-Z]{34}\b",
        Kind.CREDENTIAL,
        "Hugging Face docs, “User access tokens”",
    ),
    Pattern(
        "digitalocean_token",
        rb"\bdo[opr]_v1_[a-f0-9]{64}",
        Kind.CREDENTIAL,
        "DigitalOcean docs, token prefixes",
    ),
    Pattern(
        "shopify_token",
        rb"\bshp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}",
        Kind.CREDENTIAL,
        "Shopify docs, “Access token formats”",
    ),
    Pattern(
        "databricks_token",
        rb"\bdapi[a-f0-9]{32}(?:-[0-9])?\b",
        Kind.CREDENTIAL,
        "Databricks docs, personal access tokens",
    ),
    Pattern(
        "vault_token",
        rb"\bhv[sbr]\.[a-zA-Z0-9_-]{24,}",
        Kind.CREDENTIAL,
        "HashiCorp Vault docs, “Token prefixes” (1.10 and later)",
    ),
    Pattern(
        "grafana_token",
        rb"\bglsa_[a-zA-Z0-9]{32}_[a-f0-9]{8}",
        Kind.CREDENTIAL,
        "Grafana source, pkg/components/satokengen",
        check=grafana_checksum,
    ),
    Pattern(
        "atlassian_token",
        rb"\bATATT3[a-zA-Z0-9_=-]{180,}",
        Kind.CREDENTIAL,
        "Atlassian docs, API tokens with a checksum (2023 and later)",
    ),
    Pattern(
        "telegram_bot_token",
        rb"\b[0-9]{8,10}:AA[a-zA-Z0-9_-]{33}",
        Kind.CREDENTIAL,
        "Telegram Bot API docs, “Authorizing your bot”",
    ),
    Pattern(
        "discord_bot_token",
        rb"\b[MNO][a-zA-Z0-9_-]{23,27}\.[a-zA-Z0-9_-]{6}\.[a-zA-Z0-9_-]{27,38}",
        Kind.CREDENTIAL,
        "Discord docs, “Reference: Authentication”",
        check=begins_with_a_snowflake,
    ),
    Pattern(
        "tailscale_key",
        rb"\btskey-[a-z]+-[a-zA-Z0-9]{9,}-[a-zA-Z0-9]{20,}",
        Kind.CREDENTIAL,
        "Tailscale docs, “Key prefixes”",
    ),
    Pattern(
        "age_secret_key",
        rb"(?i)\bAGE-SECRET-KEY-1[qpzry9x8gf2tvdw0s3jn54khce6mua7l]{58}",
        Kind.CREDENTIAL,
        "age specification, X25519 identities (Bech32)",
        check=bech32_checksum,
    ),
    Pattern(
        "private_key",
        rb"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----(?:[a-zA-Z0-9+/=\s]|\\[nr])*"
        rb"(?:-----END [A-Z0-9 ]{0,40}-----)?",
        Kind.CREDENTIAL,
        "RFC 7468, PKCS #1, OpenSSH and RFC 9580 private keys",
        lines=True,
    ),
)
"""Looked for in everything that leaves a sandbox, in text that comes in, and in what tools write.

Not here, since requests that are no leak are full of them: JSON Web Tokens, bearer tokens of no known issuer,
and addresses that are secret in themselves (webhooks).
"""

GENERIC_SHAPES = (
    Pattern(
        "bearer_token",
        rb"(?i)bearer\s+[a-zA-Z0-9\-_.]{20,}",
        Kind.GENERIC,
        f"{_RUST}; RFC 6750 section 2.1",
    ),
    Pattern(
        "api_key_assignment",
        rb"""(?i)(?:api[_\-]?key|apikey)\s*[:=]\s*['"]?[\w\-]{20,}""",
        Kind.GENERIC,
        _RUST,
    ),
    Pattern(
        "secret_assignment",
        rb"""(?i)(?:secret|token|password|passwd)\s*[:=]\s*['"]?[\w\-]{16,}""",
        Kind.GENERIC,
        _RUST,
    ),
)

INJECTION_PATTERNS = tuple(
    Pattern(name, expression, Kind.INJECTION, _RUST)
    for name, expression in (
        ("ignore_instructions", rb"(?i)ignore\s+(?:all\s+)?previous\s+instructions"),
        ("new_identity", rb"(?i)you\s+are\s+now\s+(?:a|an)\s+"),
        ("system_you_are", rb"(?i)system\s*:\s*you\s+are"),
        ("forget_instructions", rb"(?i)forget\s+(?:everything|all|your)\s+(?:you|instructions)"),
        ("inst_open", rb"\[INST\]"),
        ("inst_close", rb"\[/INST\]"),
        ("system_marker", rb"<\|system\|>"),
        ("im_start", rb"<\|im_start\|>"),
        ("im_end", rb"<\|im_end\|>"),
        ("sys_open", rb"<<SYS>>"),
        ("end_of_text", rb"<\|endoftext\|>"),
        (
            "role_override",
            rb"(?i)(?:^|\n)\s*(?:system|user|human|assistant)\s*:\s*(?:ignore|forget|disregard|override)",
        ),
    )
)

OUTPUT_PATTERNS = (*CREDENTIAL_SHAPES, *GENERIC_SHAPES, *INJECTION_PATTERNS)
"""What the output of a tool is searched for."""


class Match(NamedTuple):
    """Where a pattern was found: ``data[start:end]``."""

    start: int
    end: int
    pattern: Pattern

    def checksum_holds(self, data: bytes) -> bool:
        """Whether what was found in ``data`` has the checksum of its format, or the format has none."""
        return self.pattern.check is None or self.pattern.check(data[self.start : self.end])


class PatternSet:
    """Patterns compiled once, to be searched for together. Safe to share between threads."""

    def __init__(self, patterns: Sequence[Pattern]) -> None:
        """Compile; an expression that RE2 does not take raises ``re2.error``."""
        self.patterns = tuple(patterns)
        self._any = _compile(b"|".join(b"(?:%s)" % pattern.expression for pattern in self.patterns))

    # Two thirds of the time to compile, for what only something found needs.
    @functools.cached_property
    def _each(self) -> tuple[Any, ...]:
        return tuple(_compile(pattern.expression) for pattern in self.patterns)

    @functools.cached_property
    def _which(self) -> Any:
        which = re2.Set.SearchSet(_options())  # type: ignore[no-untyped-call]
        for pattern in self.patterns:
            which.Add(pattern.expression)
        which.Compile()
        return which

    def found_in(self, data: bytes) -> bool:
        """Whether any of the patterns occurs: the quick question, about 1 µs for a short text."""
        # As search() does, without the calls around it.
        return next(self._any.finditer(data), None) is not None

    def find(self, data: bytes) -> list[Match]:
        """Every occurrence of every pattern, by position. Occurrences of different patterns may overlap."""
        if not self.found_in(data):
            return []
        found = [
            Match(hit.start(), hit.end(), self.patterns[index])
            for index in self._which.Match(data)
            for hit in self._each[index].finditer(data)
            if not _preceded(data, hit.start(), self.patterns[index].not_after)
        ]
        found.sort(key=lambda match: (match.start, match.end))
        return found


def _preceded(data: bytes, position: int, texts: tuple[bytes, ...]) -> bool:
    return any(data.endswith(text, 0, position) for text in texts)


def _options() -> re2.Options:
    options = re2.Options()
    options.max_mem = MAX_MEM
    # Bytes that are not UTF-8 are searched like any other.
    options.encoding = re2.Options.Encoding.LATIN1
    options.log_errors = False
    options.never_capture = True
    return options


def _compile(expression: bytes) -> Any:  # re2 has no types
    return re2.compile(expression, _options())  # type: ignore[no-untyped-call]
