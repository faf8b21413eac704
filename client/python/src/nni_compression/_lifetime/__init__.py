"""Who keeps a session alive, and what ends with whom: heartbeats, and trials of NNI.

May use `errors`, and is used by `client` and `nni`.
"""
