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

// The payload of a status that the server gave: what its log calls the call, as text.
inline constexpr char kRequestIdPayload[] = "nni.compression/request-id";

// Exponential back-off with jitter between the attempts of one call.
struct RetryOptions {
  absl::Duration initial_backoff = absl::Milliseconds(50);
  absl::Duration max_backoff = absl::Seconds(5);
  double multiplier = 2;
  // How long a server may be unavailable before the call gives up. Progress begins it anew. Waiting
  // that the server asked for does not count.
  absl::Duration time_limit = absl::Seconds(60);
};

// How the connection is encrypted. The files are in PEM and are read at Connect.
struct TlsOptions {
  std::string ca;           // who signs the server's certificate; empty: whom gRPC knows
  std::string certificate;  // the client's own, with its chain, for servers that ask for one
  std::string key;          // the certificate's
  bool enabled = true;      // false: the connection is open, whatever the environment says
};

struct ClientOptions {
  absl::Duration connect_timeout = absl::Seconds(10);
  absl::Duration timeout = absl::Seconds(30);  // of calls without tensors, retries included
  absl::Duration transfer_timeout = absl::Minutes(30);  // of calls with tensors, retries included
  RetryOptions retry;
  // The server's --shm_socket, where it is on this host: large weights are handed over in shared
  // memory then, and over the network where that does not work. Empty: never; unset:
  // $NNI_COMPRESSION_SHM_SOCKET.
  std::optional<std::string> shm_socket;
  // The bearer token that the server asks for, or a file with it that is read at Connect. An empty
  // string stands for none; both unset: $NNI_COMPRESSION_TOKEN, else $NNI_COMPRESSION_TOKEN_FILE.
  std::optional<std::string> token;
  std::optional<std::string> token_file;
  // Without TLS a token travels as it is. Connect refuses that with INVALID_ARGUMENT unless the
  // server is on this host or this says that nobody reads along. Unset:
  // $NNI_COMPRESSION_ALLOW_INSECURE_TOKEN=1.
  std::optional<bool> allow_insecure_token;
  // Unset: $NNI_COMPRESSION_TLS=1, and the paths in $NNI_COMPRESSION_TLS_CA,
  // $NNI_COMPRESSION_TLS_CERTIFICATE and $NNI_COMPRESSION_TLS_KEY; without any of them the
  // connection is open.
  std::optional<TlsOptions> tls;
  bool checksum = false;  // send a CRC-32 with every tensor; the server checks it
};

// A layer of the model, compressible or not.
struct Layer {
  std::string name;     // unique
  std::string op_type;  // as the framework calls it: "Conv2d", "Dense"
  DataType dtype = DataType::kFloat32;
  std::vector<int64_t> shape;        // of the weight
  int channel_axis = 0;              // what per-channel quantization keeps apart: the last in Keras
  std::vector<std::string> aliases;  // further names of a tied weight
};

// A mask that the trainer already has.
struct InitialMask {
  std::string layer;
  absl::Span<const uint8_t> bits;  // ceil(n / 8) bytes
};

// What an earlier session remembered of a layer: QuantizedTensor::memory of its last answer.
struct InitialMemory {
  std::string layer;
  Memory memory;
};

// What a session is bound to. With masks, memory, epoch, step and step_applied as they were at some
// time, the session answers as that of the time did: so a trainer goes on from a checkpoint.
struct BindRequest {
  std::string algorithm;    // "level", "agp", ...: see Client::ListAlgorithms
  std::string config_list;  // NNI's, as JSON: [{"sparsity": 0.8, "op_types": ["default"]}]
  std::vector<Layer> layers;
  std::string framework = "generic";          // "pytorch", "tensorflow", "keras" or "generic"
  std::map<std::string, std::string> labels;  // for listing, logs and metrics
  std::optional<absl::Duration> lease;        // how long the session lives without a call
  std::vector<InitialMask> masks;
  std::vector<InitialMemory> memory;
  int64_t epoch = 0;  // where training resumes
  int64_t step = 0;
  bool step_applied = false;  // StepResult::step was `step`: what comes with it counts no more
  // A rule without op_types and op_names leaves layers of one dimension out, and a warning of the
  // plan says how many: `layers` may be all weights of a model, and hardly anybody wants the scales
  // of its norms compressed. False: such a rule matches every layer.
  bool vectors_need_filter = true;
};

// Calls a compression server. A handle; copies share the connection. Thread-safe.
// Errors and retries are as in session.h.
class Client {
 public:
  // $NNI_COMPRESSION_SERVER, else 127.0.0.1:50051.
  static std::string DefaultAddress();

  // Connects to `address` ("HOST:PORT"; empty: the default one). INVALID_ARGUMENT, at once, when
  // that is not an address; UNAVAILABLE, naming the address and what can be done, when no server
  // answers within connect_timeout.
  static absl::StatusOr<Client> Connect(absl::string_view address = "",
                                        const ClientOptions& options = {});

  const std::string& address() const;

  // OK when the server takes calls; UNAVAILABLE when it drains.
  absl::Status Health(const CallOptions& options = {}) const;

  // The algorithms with their options, and the server's version.
  absl::StatusOr<v1::ListAlgorithmsResponse> ListAlgorithms(const CallOptions& options = {}) const;

  // All live sessions that have the labels, oldest first, without their layers.
  absl::StatusOr<std::vector<v1::Session>> ListSessions(
      const std::map<std::string, std::string>& labels = {}, const CallOptions& options = {}) const;

  // What each tenant uses. PERMISSION_DENIED for all but operators.
  absl::StatusOr<v1::ListTenantsResponse> ListTenants(const CallOptions& options = {}) const;

  // What a session is and how far it has come; with its plan while it lives.
  absl::StatusOr<v1::GetSessionResponse> GetSession(absl::string_view session_id,
                                                    const CallOptions& options = {}) const;

  // Ends a session. Closing a closed session succeeds.
  absl::Status CloseSession(absl::string_view session_id, const CallOptions& options = {}) const;

  // Opens a session. All of the configuration is validated here. Masks too large for one message
  // are uploaded right after.
  absl::StatusOr<Session> BindModel(const BindRequest& request,
                                    const CallOptions& options = {}) const;

  // Another rank's, or an earlier run's, live session. `route` is its Session::route(), which
  // matters where a proxy spreads sessions over servers.
  absl::StatusOr<Session> Join(absl::string_view session_id, absl::string_view route = "",
                               const CallOptions& options = {}) const;

 private:
  Client(std::shared_ptr<const internal::Connection> connection, std::string route);

  std::shared_ptr<const internal::Connection> connection_;
  std::shared_ptr<const internal::Route> route_;  // of the calls that belong to no session
};

}  // namespace nni_compression

#endif  // NNI_COMPRESSION_CLIENT_H_
