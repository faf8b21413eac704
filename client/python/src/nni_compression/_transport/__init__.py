"""The way to the server: addresses, credentials, TLS, the channel with its retries, shared memory.

May use `_wire`, `values` and `errors`. What a call does whatever it is about belongs here; what a
call is about belongs to `_calls`.
"""
