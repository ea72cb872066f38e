"""What is asked of a server: the messages of requests, and how long each kind of call may take."""

from __future__ import annotations

import difflib
import json
from typing import TYPE_CHECKING, TypedDict

from clawbox_client.tools import Manifest, Upload, manifest_from_json, network_rule
from clawbox_client.v1 import capabilities_pb2, sandbox_pb2, system_pb2

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from clawbox_client.results import Json

UPLOAD_DEADLINE = 300.0
"""Seconds that an upload may take, because the server compiles the module before it answers."""

QUEUE_ALLOWANCE = 30.0
"""Seconds that a run's deadline leaves, beyond its own time limit, for waiting and the way there and back."""


class RunOptions(TypedDict, total=False):
    """What every run takes besides its tool and parameters. Left out means the tool's own."""

    network: Sequence[str | capabilities_pb2.NetworkRule] | None
    """Where the run may connect: hosts (``api.example``, ``*.example``, ``api.example:8443``) or rules.

    It can only narrow what the tool's manifest allows; ``[]`` is no network.
    """
    max_concurrent: int
    """Outgoing requests at once; 0 is the manifest's."""
    credentials: Sequence[str]
    """Names of credentials that may be attached to the run's requests. Left out: none."""
    timeout_ms: int | None
    """Wall-clock limit of the run."""
    memory_mb: int | None
    """Memory limit in MiB."""
    fuel: int | None
    """Limit of executed instructions."""
    max_output_bytes: int | None
    """Limit of what is kept of stdout."""
    agent_id: str
    """The agent on whose behalf the tool runs."""
    request_id: str
    """An id of the caller's own, for logs and audit."""
    deadline: float | None
    """Seconds that the whole call may take, waiting included; None is the client's."""


def refuse_unknown(options: Mapping[str, object], kind: type) -> None:
    """Raises TypeError for an option that the TypedDict ``kind`` has not: at run time nothing else looks."""
    known = kind.__annotations__
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise TypeError(f"there is no option {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))


def execute(
    tool: str, params: Json = None, params_json: str | None = None, options: RunOptions | None = None
) -> sandbox_pb2.ExecuteRequest:
    """A run. Parameters travel as JSON text, which keeps every digit of every number.

    ``params_json`` is sent as it is, for those who have JSON text already.
    Raises ValueError (both forms given, a NaN or an infinity, a bad network rule) and TypeError (not JSON, an
    unknown option).
    """
    given = options or RunOptions()
    refuse_unknown(given, RunOptions)
    if params_json is None:
        params_json = json.dumps(params, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    elif params is not None:
        raise ValueError("give params or params_json, not both")
    return sandbox_pb2.ExecuteRequest(
        tool=tool,
        params_json=params_json,
        capabilities=_capabilities(given),
        agent_id=given.get("agent_id", ""),
        request_id=given.get("request_id", ""),
    )


def run_code(tool: str, code: str, input_value: Json, options: RunOptions) -> sandbox_pb2.ExecuteRequest:
    """A run of an interpreter tool on a snippet."""
    params: dict[str, Json] = {"code": code}
    if input_value is not None:
        params["input"] = input_value
    return execute(tool, params, None, options)


def _capabilities(options: RunOptions) -> capabilities_pb2.Capabilities | None:
    network = options.get("network")
    max_concurrent = options.get("max_concurrent", 0)
    credentials = options.get("credentials", ())
    resources = capabilities_pb2.Resources(
        timeout_ms=options.get("timeout_ms"),
        memory_mb=options.get("memory_mb"),
        fuel=options.get("fuel"),
        max_output_bytes=options.get("max_output_bytes"),
    )
    if isinstance(network, str) or isinstance(credentials, str):
        raise TypeError("network and credentials are lists, not one string")
    if max_concurrent and network is None:
        raise ValueError("max_concurrent goes with network")
    limited = bool(resources.ListFields())
    if network is None and not credentials and not limited:
        return None
    return capabilities_pb2.Capabilities(
        network=None
        if network is None
        else capabilities_pb2.NetworkCapabilities(
            rules=[network_rule(rule) for rule in network], max_concurrent=max_concurrent
        ),
        credentials=credentials,
        resources=resources if limited else None,
    )


def list_tools(name_prefix: str, page_size: int, page_token: str) -> sandbox_pb2.ListToolsRequest:
    """One page of tools."""
    return sandbox_pb2.ListToolsRequest(page_size=page_size, page_token=page_token, name_prefix=name_prefix)


def register_tool(manifest: Manifest, *, published: bool | None) -> sandbox_pb2.RegisterToolRequest:
    """A manifest for a tool whose module is there. Raises ValueError for what is no manifest."""
    return sandbox_pb2.RegisterToolRequest(manifest=manifest_from_json(manifest), published=published)


def upload_start(
    name: str, upload: Upload, manifest: Manifest | None, *, replace: bool, published: bool | None
) -> sandbox_pb2.UploadToolRequest:
    """The first message of an upload. Raises ValueError for what is no manifest."""
    return sandbox_pb2.UploadToolRequest(
        start=sandbox_pb2.UploadToolStart(
            name=name,
            manifest=None if manifest is None else manifest_from_json(manifest),
            size_bytes=upload.size_bytes,
            sha256=upload.sha256,
            replace=replace,
            published=published,
        )
    )


def watch_audit(after_sequence: int | None, kinds: Sequence[str]) -> system_pb2.WatchAuditRequest:
    """Which audit rows to stream."""
    return system_pb2.WatchAuditRequest(after_sequence=after_sequence, kinds=kinds)


def run_deadline(options: RunOptions, default: float | None) -> float | None:
    """Seconds for the whole call: the caller's; else the client's, or more where the run may take more."""
    given = options.get("deadline")
    if given is not None or default is None:
        return given
    timeout_ms = options.get("timeout_ms")
    return default if timeout_ms is None else max(default, timeout_ms / 1000 + QUEUE_ALLOWANCE)
