// The compression server.
#ifndef NNI_COMPRESSION_SERVER_SERVER_H_
#define NNI_COMPRESSION_SERVER_SERVER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "compression/algorithms/registry.h"
#include "server/auth/authenticator.h"
#include "server/base/clock.h"
#include "server/net/tls.h"
#include "server/sessions/session_store.h"
#include "server/shm/side_listener.h"
#include "server/storage/storage.h"

namespace nni_compression::server {

struct ServerOptions {
  std::string listen = "127.0.0.1:50051";  // HOST:PORT, port 0 picks one; or unix:PATH
  // Beyond loopback although there is no TLS, or no authenticator.
  bool allow_insecure_listen = false;
  TlsOptions tls;
  int64_t memory_budget = 0;  // bytes for tensors; 0: 60 % of what there is
  // Of these, for weights that came before and may be asked for again; nothing: half, at most 2
  // GiB. They go when their place is needed.
  std::optional<int64_t> cache_budget;
  int compute_threads = 0;     // 0: as many as CpuLimit()
  int max_connections = 4096;  // at a time
  int max_calls = 4096;        // at a time
  absl::Duration stall_timeout = absl::Seconds(60);
  int64_t min_upload_rate = 16 << 10;  // bytes a second over the stall timeout; 0: none
  absl::Duration handshake_timeout = absl::Seconds(10);
  absl::Duration idle_timeout = absl::Minutes(10);  // of a connection without calls
  // After this a connection takes no more calls, and those that run have the grace to finish.
  absl::Duration max_connection_age = absl::Hours(1);
  absl::Duration max_connection_grace = absl::Hours(24);
  absl::Duration algorithm_timeout = absl::Seconds(60);  // of plugins and scripts, for a layer
  bool reflection = false;
  // HOST:PORT for metrics and probes, which ask nobody who calls; the rule of `listen` holds.
  // Empty: none.
  std::string metrics_listen;
  SideSocketOptions side_socket;
  SessionStore::Options sessions;
  std::shared_ptr<Storage> storage;  // null: sessions live in memory only

  // Null: the ones of a server in production. The clock and the registry outlive the server.
  std::shared_ptr<Authenticator> authenticator;
  Clock* clock = nullptr;
  const compression::Registry* registry = nullptr;
};

// Serves from Start until Drain or destruction. Thread-safe.
class Server {
 public:
  // INVALID_ARGUMENT for options out of range, for certificates that cannot be read, and for an
  // address that is not this machine's unless calls are encrypted and callers asked who they are,
  // or allow_insecure_listen says otherwise; UNAVAILABLE when the address cannot be listened on.
  static absl::StatusOr<std::unique_ptr<Server>> Start(const ServerOptions& options);

  // Stops at once: calls that run are cancelled.
  ~Server();

  int port() const;
  int metrics_port() const;  // 0: none

  // Says NOT_SERVING, refuses new calls with UNAVAILABLE, lets those that run finish for up to
  // `timeout`, cancels what is left, and stops. Waits for all of it; a second call does nothing.
  void Drain(absl::Duration timeout);

  // What tests and metrics look at.
  int64_t memory_reserved() const;
  int64_t memory_waiting() const;  // calls
  int64_t live_sessions() const;
  int64_t shared_bytes() const;  // mapped for trainers on this host
  int connections() const;
  int side_connections() const;

 private:
  class Impl;
  explicit Server(std::unique_ptr<Impl> impl);

  const std::unique_ptr<Impl> impl_;
};

// The project's version.
absl::string_view ServerVersion();

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_SERVER_H_
