"""What calls take and return: plans, tensors, masks, quantized weights, reports, statistics.

Values have no connection to a server. May use `_wire` and `errors`. The package offers what users
need of them: `nni_compression.Mask` is `nni_compression.values.masks.Mask`.
"""
