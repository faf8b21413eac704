// The text of `compressionctl --help`.
#ifndef NNI_COMPRESSION_CLIENT_CLI_USAGE_H_
#define NNI_COMPRESSION_CLIENT_CLI_USAGE_H_

namespace nni_compression::cli {

inline constexpr char kUsage[] =
    R"(compressionctl: compresses models with a compression server, from a shell.

usage: compressionctl [--server=HOST:PORT] [--json] COMMAND

  health                     whether the server takes calls
  algorithms                 the server's algorithms with their options
  sessions [--label=K=V,...] the live sessions
  top [--once] [--label=K=V,...]
                             the busiest sessions, their rates and memory, again
                             and again; --once: once, with rates since they began
  session ID                 one session, layer by layer
  close ID                   ends a session
  close --label=K=V,...      ends all sessions that have these labels
  prune --algorithm=NAME --config=FILE.json MODEL.safetensors -o DIR
  quantize --algorithm=NAME --config=FILE.json MODEL.safetensors -o DIR
                             compresses a checkpoint into DIR
  export --session=ID MODEL.safetensors -o DIR
                             writes what a live session, a trainer's say, has
                             made of a checkpoint
  backup --data_dir=DIR NEW_DIR
                             copies a server's sessions, while it runs; on its host
  restore --data_dir=NEW_DIR BACKUP_DIR
                             makes a data directory of a backup, for a server to start on
  tenant add NAME --tokens=FILE [--admin]
                             a new token of a tenant, printed this once; FILE, the
                             server's --token_file, gets its SHA-256. The server
                             notices within a second, as of all that follows
  tenant list --tokens=FILE [--server=HOST:PORT]
                             tenants, the ids of their tokens, their limits, and what
                             they use of a server that this caller is an operator of
  tenant revoke NAME --tokens=FILE [--token_id=ID]
                             takes all tokens away, or one
  tenant quota NAME LIMIT... --tokens=FILE [--without_token]
                             sets limits: sessions=N, memory=BYTES, disk=BYTES,
                             calls=N, uploads=N (tensors a second); `none` instead
                             of a number takes one away. --without_token: NAME is
                             that of a certificate, and no token has it

prune and quantize read a config_list such as
  [{"sparsity": 0.8, "op_types": ["default"]},
   {"exclude": true, "op_names": ["classifier.weight"]}]
where "default" is every tensor *.weight with two or more dimensions and
op_names are the names of tensors in the file. A rule with neither matches all
tensors of two or more dimensions. The last rule that matches a tensor wins. DIR
gets model.safetensors, with all other tensors as they were.

  -o DIR              where the result goes; made when it does not exist
  --overwrite         replaces files of earlier results in DIR
  --format=FORMAT     safetensors (default): the compressed checkpoint
                      sparse: model.sparse.safetensors, with kept weights only
                      compressed-tensors: config.json and model.safetensors with
                      codes of quantized weights
                      onnx: model.onnx.safetensors, for nni_compression.onnx.apply
                      pth: model.pth for torch.load, and masks.pth
                      masks: masks.safetensors and masks.packed.safetensors
                      (export needs no MODEL for it)
                      report: report.html and report.json
  --epoch=N           epoch of a gradual pruner (default: where its rules end)
  --step=N            step of a quantizer (default: where quantization begins)
  --label=K=V,...     labels of the session. Those of an NNI experiment's trials
                      have nni_experiment, nni_trial and nni_sequence

  --interval=DURATION time between two looks of top (default: 2s)

  --server=HOST:PORT  default: $NNI_COMPRESSION_SERVER, else 127.0.0.1:50051
  --connect_timeout=DURATION
                      how long to wait for the server (default: 5s)
  --shm_socket=PATH   the server's --shm_socket, where it is on this host: large
                      tensors are handed over in shared memory
                      (default: $NNI_COMPRESSION_SHM_SOCKET)
  --token_file=FILE   file with the token that the server asks for
                      (default: $NNI_COMPRESSION_TOKEN_FILE, or the token in
                      $NNI_COMPRESSION_TOKEN)
  --allow_insecure_token
                      sends it to another host without TLS, too: for a network where
                      nobody reads along
                      (default: $NNI_COMPRESSION_ALLOW_INSECURE_TOKEN=1)
  --tls, --tls_ca=FILE, --tls_certificate=FILE, --tls_key=FILE
                      encrypts the connection; who signs the server's certificate,
                      and the client's own, in PEM (default:
                      $NNI_COMPRESSION_TLS=1, $NNI_COMPRESSION_TLS_CA,
                      $NNI_COMPRESSION_TLS_CERTIFICATE, $NNI_COMPRESSION_TLS_KEY)
  --json              print JSON, errors included
  --help, --version

The exit status is 0 only when all of it worked. Errors go to stderr.
)";

}  // namespace nni_compression::cli

#endif  // NNI_COMPRESSION_CLIENT_CLI_USAGE_H_
