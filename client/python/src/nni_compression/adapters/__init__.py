"""The part of pruners and quantizers that all frameworks share.

`compressor.Compressor` is complete except for a `backend.Backend`, which `nni_compression.torch`,
`nni_compression.keras` and `nni_compression.tf1` implement. May use everything but these.

| module | what is in it |
|---|---|
| `compressor`, `pruner`, `quantizer` | the public interface, complete but for a framework |
| `algorithms` | the table of the server's algorithms that have a class |
| `backend` | the interface of a framework |
| `lifecycle` | one session bound to one model, all or nothing, until it is closed |
| `recovery` | lost sessions and failed bindings |
| `checkpoint` | the content of `state_dict`, and its mapping to another model |
| `export` | files of the server's formats, and of ONNX |
| `binding`, `pruning`, `quantizing` | which layers need an answer, and how it is applied |
| `statistics` | what an algorithm asks for beyond weights: when it is sent, and what is kept |
| `custom` | algorithms that compute in the trainer |
| `tracker` | whether a layer needs another answer |
| `warn` | warnings at the user's line |
"""
