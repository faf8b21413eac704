"""The part of pruners and quantizers that all frameworks share.

`compressor.Compressor` is complete; what it needs of a framework is a `backend.Backend`, which
`nni_compression.torch`, `nni_compression.keras` and `nni_compression.tf1` implement. May use
everything but these.

| module | what is in it |
|---|---|
| `compressor`, `pruner`, `quantizer` | the public interface, complete but for a framework |
| `algorithms` | the table of the server's algorithms that have a class |
| `backend` | the interface of a framework |
| `lifecycle` | one session bound to one model, all or nothing, until it is closed |
| `recovery` | sessions that were lost, and bindings that failed |
| `checkpoint` | what `state_dict` has, and how it fits another model |
| `export` | files of the server's formats, and of ONNX |
| `binding`, `pruning`, `quantizing` | which layers to ask for, and what to do with the answers |
| `custom` | algorithms that compute in the trainer |
| `tracker` | whether a layer needs another answer |
| `warn` | warnings at the user's line |
"""
