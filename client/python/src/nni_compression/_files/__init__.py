"""Files of exports: written atomically; safetensors files are read, too.

May use `values` and `errors`.
"""
