// The client of a compression server.
#ifndef NNI_COMPRESSION_CLIENT_H_
#define NNI_COMPRESSION_CLIENT_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "nni/compression/v1/compression.pb.h"
#include "nni_compression/session.h"
#include "nni_compression/types.h"

namespace nni_compression {

// The payload of a status from the server: the id of the call in its log, as text.
inline constexpr char kRequestIdPayload[] = "nni.compression/request-id";

// Exponential back-off with jitter between the attempts of one call.
struct RetryOptions {
  absl::Duration initial_backoff = absl::Milliseconds(50);
  absl::Duration max_backoff = absl::Seconds(5);
  double multiplier = 2;
  // How long a server may be unavailable before the call fails. Progress restarts the limit.
  // Delays that the server asked for do not count.
  absl::Duration time_limit = absl::Seconds(60);
};

// How the connection is encrypted. The files are in PEM and are read at Connect.
struct TlsOptions {
  std::string ca;           // authorities for the server's certificate; empty: those of gRPC
  std::string certificate;  // the client certificate with its chain, for mutual TLS
  std::string key;          // the certificate's
  bool enabled = true;      // false: no TLS, whatever the environment says
};

struct ClientOptions {
  absl::Duration connect_timeout = absl::Seconds(10);
  absl::Duration timeout = absl::Seconds(30);  // of calls without tensors, retries included
  absl::Duration transfer_timeout = absl::Minutes(30);  // of calls with tensors, retries included
  RetryOptions retry;
  // The server's --shm_socket, when the server is on this host: large weights are passed in shared
  // memory, or over the network if that fails. Empty: never; unset: $NNI_COMPRESSION_SHM_SOCKET, or
  // where a server of this user offers it by default.
  std::optional<std::string> shm_socket;
  // The bearer token that the server asks for, or a file with it that is read at Connect. An empty
  // string means none; both unset: $NNI_COMPRESSION_TOKEN, else $NNI_COMPRESSION_TOKEN_FILE.
  std::optional<std::string> token;
  std::optional<std::string> token_file;
  // Without TLS the token is sent unencrypted. Connect refuses that with INVALID_ARGUMENT unless
  // the server is on this host or this is true, for networks without eavesdroppers. Unset:
  // $NNI_COMPRESSION_ALLOW_INSECURE_TOKEN=1.
  std::optional<bool> allow_insecure_token;
  // Unset: $NNI_COMPRESSION_TLS=1, and the paths in $NNI_COMPRESSION_TLS_CA,
  // $NNI_COMPRESSION_TLS_CERTIFICATE and $NNI_COMPRESSION_TLS_KEY; without any of them the
  // connection is not encrypted.
  std::optional<TlsOptions> tls;
  bool checksum = false;  // send a CRC-32 with every tensor; the server checks it
};

// A layer of the model, compressible or not.
struct Layer {
  std::string name;     // unique
  std::string op_type;  // as the framework calls it: "Conv2d", "Dense"
  DataType dtype = DataType::kFloat32;
  std::vector<int64_t> shape;        // of the weight
  int channel_axis = 0;              // of per-channel quantization: the last one in Keras
  std::vector<std::string> aliases;  // further names of a tied weight
  bool needs_filter = false;         // rules that filter neither by type nor by name leave it out
  std::vector<std::string> op_type_bases;  // further types, such as base classes; at most 16
};

// Layers whose filters go together, for algorithms that prune filters: see FilterGroup in
// compression.proto.
struct FilterGroup {
  struct Member {
    std::string layer;
    std::vector<uint32_t> units;  // for each filter, its unit; empty: filter i is of unit i
  };
  std::vector<Member> members;
  uint32_t runs = 1;  // each loses as many units as the others
};

// A mask that the trainer already has.
struct InitialMask {
  std::string layer;
  absl::Span<const uint8_t> bits;  // ceil(n / 8) bytes
};

// The memory of a layer in an earlier session: QuantizedTensor::memory of its last answer.
struct InitialMemory {
  std::string layer;
  Memory memory;
};

// What a session is bound to. With the masks, memory, epoch, step and step_applied of an earlier
// session, the new one answers as that one did: so a trainer resumes from a checkpoint.
struct BindRequest {
  std::string algorithm;    // "level", "agp", ...: see Client::ListAlgorithms
  std::string config_list;  // NNI's, as JSON: [{"sparsity": 0.8, "op_types": ["default"]}]
  std::vector<Layer> layers;
  std::vector<FilterGroup> filter_groups;
  std::string framework = "generic";          // "pytorch", "tensorflow", "keras" or "generic"
  std::map<std::string, std::string> labels;  // for listing, logs and metrics
  std::optional<absl::Duration> lease;        // how long the session lives without a call
  std::vector<InitialMask> masks;
  std::vector<InitialMemory> memory;
  int64_t epoch = 0;  // where training resumes
  int64_t step = 0;
  bool step_applied = false;  // `step` was applied: repeating it changes nothing
  // A rule without op_types and op_names skips layers of one dimension, and a warning of the plan
  // says how many: `layers` may be all weights of a model, and the scales of its norms are rarely
  // meant. False: such a rule matches every layer.
  bool vectors_need_filter = true;
};

// Calls a compression server. A handle; copies share the connection. Thread-safe.
// Errors and retries are as in session.h.
class Client {
 public:
  // $NNI_COMPRESSION_SERVER, else 127.0.0.1:50051.
  static std::string DefaultAddress();

  // Connects to `address` ("HOST:PORT"; empty: the default one). INVALID_ARGUMENT, at once, when
  // that is not an address; UNAVAILABLE, with the address and advice, when no server answers within
  // connect_timeout.
  static absl::StatusOr<Client> Connect(absl::string_view address = "",
                                        const ClientOptions& options = {});

  const std::string& address() const;

  // OK when the server is serving; UNAVAILABLE when it is draining.
  absl::Status Health(const CallOptions& options = {}) const;

  // The algorithms with their options, and the server's version.
  absl::StatusOr<v1::ListAlgorithmsResponse> ListAlgorithms(const CallOptions& options = {}) const;

  // All live sessions that have the labels, oldest first, without their layers.
  absl::StatusOr<std::vector<v1::Session>> ListSessions(
      const std::map<std::string, std::string>& labels = {}, const CallOptions& options = {}) const;

  // Those, and ended ones as long as the server keeps their last reports. A server that is too old
  // to list them returns the live ones.
  absl::StatusOr<std::vector<v1::Session>> ListAllSessions(
      const std::map<std::string, std::string>& labels = {}, const CallOptions& options = {}) const;

  // What each tenant uses. PERMISSION_DENIED for all but operators.
  absl::StatusOr<v1::ListTenantsResponse> ListTenants(const CallOptions& options = {}) const;

  // The state of a session, and its plan while it is live.
  absl::StatusOr<v1::GetSessionResponse> GetSession(absl::string_view session_id,
                                                    const CallOptions& options = {}) const;

  // Ends a session. Closing a closed session succeeds.
  absl::Status CloseSession(absl::string_view session_id, const CallOptions& options = {}) const;

  // Opens a session. All of the configuration is validated here. Masks too large for one message
  // are uploaded right after.
  absl::StatusOr<Session> BindModel(const BindRequest& request,
                                    const CallOptions& options = {}) const;

  // The live session of another rank or an earlier run. `route` is its Session::route(), which is
  // needed when a proxy distributes sessions over servers.
  absl::StatusOr<Session> Join(absl::string_view session_id, absl::string_view route = "",
                               const CallOptions& options = {}) const;

 private:
  Client(std::shared_ptr<const internal::Connection> connection, std::string route);

  std::shared_ptr<const internal::Connection> connection_;
  std::shared_ptr<const internal::Route> route_;  // of calls that do not belong to a session
};

}  // namespace nni_compression

#endif  // NNI_COMPRESSION_CLIENT_H_
