"""The half of an adapter that all frameworks share: a model's session, its layers, its state.

`nni_compression.torch` and `nni_compression.tensorflow` are the other halves. May use everything
but these. To add a framework, read `compressor.Compressor` and what its methods leave open.
"""
