"""Lifetimes: background renewal of sessions' leases, NNI trials, servers that end with a process.

May use `errors`, and is used by `client` and `nni`.
"""
