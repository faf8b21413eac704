"""The lifetime of sessions: background renewal of leases, and NNI trials.

May use `errors`, and is used by `client` and `nni`.
"""
