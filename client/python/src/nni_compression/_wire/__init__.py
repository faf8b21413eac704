"""The messages of the service: generated code, their frames, and what their structs hold.

May use `errors`. A new field of the contract is generated into compression_pb2; what a reply says
becomes a value in `values`.
"""
