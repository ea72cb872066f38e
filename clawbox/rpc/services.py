"""The services that a server offers: each with its generated registration function and its servicer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clawbox_client.v1 import containers_pb2_grpc, sandbox_pb2_grpc, system_pb2_grpc

if TYPE_CHECKING:
    from clawbox.rpc.containers import ContainersServicer
    from clawbox.rpc.sandbox import SandboxServicer
    from clawbox.rpc.server import RpcServer
    from clawbox.rpc.system import SystemServicer


def serve_sandbox(server: RpcServer, servicer: SandboxServicer) -> None:
    """Offer ``clawbox.v1.Sandbox``."""
    server.serve(sandbox_pb2_grpc.add_SandboxServicer_to_server, servicer)


def serve_containers(server: RpcServer, servicer: ContainersServicer) -> None:
    """Offer ``clawbox.v1.Containers``."""
    server.serve(containers_pb2_grpc.add_ContainersServicer_to_server, servicer)


def serve_system(server: RpcServer, servicer: SystemServicer) -> None:
    """Offer ``clawbox.v1.System``."""
    server.serve(system_pb2_grpc.add_SystemServicer_to_server, servicer)
