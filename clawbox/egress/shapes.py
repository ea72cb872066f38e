"""Strings that look like credentials, and phrases that try to steer a model.

Shapes need no secrets, so anything may look for them. Some are those of the Rust clawbox 0.1; each names
where its format is from. Only formats that an issuer publishes, with a prefix of their own, are shapes: no
rule guesses by entropy, since what a request is refused for must be explicable.
"""

from __future__ import annotations

from clawbox.egress.checksums import (
    bech32_checksum,
    begins_with_a_snowflake,
    github_checksum,
    grafana_checksum,
)
from clawbox.egress.patterns import Kind, Pattern

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
