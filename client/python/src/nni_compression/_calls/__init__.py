"""The calls of a session: send weights and statistics, receive masks, quantized weights and
exports.

May use `_transport`, `_wire`, `values` and `errors`. `session.Session` is its public interface.
"""
