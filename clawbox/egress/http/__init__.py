"""HTTP/1.1 as bytes in and values out: strict, incremental, in constant memory, without any I/O.

Both directions are hostile: requests come from the sandbox, responses from whatever answers for an allowed
host. What two programs could read differently is refused, not repaired (RFC 9112; properties 21 to 32).
"""
