"""One made-up credential of each shape, in its issuer's format, its checksum right.

They are put together here so that no file holds one: whoever scans this repository should find nothing.
"""

import base64
import zlib

BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
# A word without a run of it being anything: 20 characters.
W = "Ab1Cd2Ef3Gh4Ij5Kl6Mn"
H = "0a1b2c3d4e5f6789" * 4


def crc_62(text):
    number, digits = zlib.crc32(text.encode()), ""
    for _ in range(6):
        number, digit = divmod(number, 62)
        digits = BASE62[digit] + digits
    return digits


def github(prefix, secret=(W + W)[:30]):
    return f"{prefix}_{secret}{crc_62(secret)}"


def grafana():
    body = "glsa" + "_" + (W + W)[:32]
    return f"{body}_{zlib.crc32(body.encode()).to_bytes(4, 'little').hex()}"


def discord():
    snowflake = base64.urlsafe_b64encode(b"198622483471925248").decode().rstrip("=")
    return f"{snowflake}.Cl2FMQ.{(W + W)[:27]}"


EXAMPLES = {
    "sk_api_key": "sk-" + "Ab1" * 9,
    "github_personal_token": github("ghp"),
    "github_server_token": github("ghs"),
    "github_user_token": github("gho"),
    "github_refresh_token": "ghr_" + (W * 4)[:76],
    "github_fine_grained_token": "github" + "_pat_" + (W + W)[:22] + "_" + (W * 3)[:59],
    "gitlab_token": "glpat" + "-" + W,
    "slack_token": "xox" + "b-123456-abcdefGHIJ",
    "slack_app_token": "xapp" + "-1-A0123BCDE-1234567890123-" + H[:64],
    "slack_refresh_token": "xoxe" + "-1-" + W * 7,
    "openai_api_key": "sk" + "-proj-" + W + "T3Blbk" + "FJ" + W,
    "anthropic_api_key": "sk" + "-ant-api03-" + (W * 5)[:93] + "AA",
    "google_api_key": "AIza" + (W + W)[:35],
    "google_oauth_token": "ya29" + "." + W,
    "google_client_secret": "GOCSPX" + "-" + (W + W)[:28],
    "aws_access_key_id": "AKIA" + "ABCDEFGH234567IJ",
    "aws_secret_access_key": "aws_secret_access_key" + " = " + W + W,
    "aws_bedrock_api_key": "ABSK" + (W * 6)[:109] + "=",
    "azure_storage_key": "AccountKey" + "=" + (W * 5)[:86] + "==",
    "azure_client_secret": "abc8" + "Q~" + (W + W)[:34],
    "stripe_key": "sk" + "_live_" + (W + W)[:24],
    "stripe_webhook_secret": "whsec" + "_" + (W + W)[:32],
    "sendgrid_key": "SG" + "." + (W + W)[:22] + "." + (W * 3)[:43],
    "npm_token": github("npm"),
    "pypi_token": "pypi" + "-AgEIcHlwaS5vcmc" + W * 3,
    "rubygems_key": "rubygems" + "_" + H[:48],
    "docker_hub_token": "dckr" + "_pat_" + (W + W)[:27],
    "huggingface_token": "hf" + "_" + ("AbCdEfGhIj" * 4)[:34],
    "digitalocean_token": "dop" + "_v1_" + H,
    "shopify_token": "shpat" + "_" + H[:32],
    "databricks_token": "dapi" + H[:32],
    "vault_token": "hvs" + "." + (W + W)[:24],
    "grafana_token": grafana(),
    "atlassian_token": "ATATT3" + (W * 10)[:180] + "=1A2B3C4D",
    "telegram_bot_token": "1234567890:" + "AA" + (W + W)[:33],
    "discord_bot_token": discord(),
    "tailscale_key": "tskey" + "-auth-" + W[:12] + "-" + W + W[:12],
    # Of the age specification's test vectors.
    "age_secret_key": "AGE-SECRET-KEY-1" + "GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX",
    "private_key": f"-----BEGIN EC PRIVATE {'KEY'}-----\n{W}{W}\n{W}==\n-----END EC PRIVATE {'KEY'}-----",
}
"""Shape → example; the whole example is the match."""
