"""Files that an export leaves: written whole or not at all, and safetensors as it is read back.

May use `values` and `errors`.
"""
