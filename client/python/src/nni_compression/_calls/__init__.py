"""The calls of a session: weights go out, masks, quantized weights and exports come in.

May use `_transport`, `_wire`, `values` and `errors`. `session.Session` is what callers see of it.
"""
