"""The messages of the service: generated code, frames, and conversion of structs.

May use `errors`. A new field of the contract is generated into compression_pb2; replies are
converted to values in `values`.
"""
