"""The gRPC edge: the only package that imports ``grpc``.

A call goes through ``interceptors`` (request id and metrics, errors, access, limits), then through one thin
servicer per service. ``server`` puts it together.
"""
