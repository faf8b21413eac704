"""The transport: addresses, credentials, TLS, the channel with its retries, shared memory.

May use `_wire`, `values` and `errors`. Everything that is independent of a call's content belongs
here; the content belongs to `_calls`.
"""
