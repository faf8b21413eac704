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
#include "server/shm/socket_listener.h"
#include "server/storage/storage.h"

namespace nni_compression::server {

struct ServerOptions {
  std::string listen = "127.0.0.1:50051";  // HOST:PORT, port 0 picks one; or unix:PATH
  // Allows listening beyond loopback without TLS or without an authenticator.
  bool allow_insecure_listen = false;
  TlsOptions tls;
  int64_t memory_budget = 0;  // bytes for tensors; 0: 60 % of the memory
  // Bytes of these for caching received weights, which are evicted when the memory is needed;
  // nullopt: half, at most 2 GiB.
  std::optional<int64_t> cache_budget;
  int compute_threads = 0;     // 0: as many as CpuLimit()
  int max_connections = 4096;  // open at a time
  int max_calls = 4096;        // running at a time
  absl::Duration stall_timeout = absl::Seconds(60);
  int64_t min_upload_rate = 16 << 10;  // bytes per second over the stall timeout; 0: none
  absl::Duration handshake_timeout = absl::Seconds(10);
  absl::Duration idle_timeout = absl::Minutes(10);  // of a connection without calls
  // After this a connection accepts no new calls, and running ones have the grace to finish.
  absl::Duration max_connection_age = absl::Hours(1);
  absl::Duration max_connection_grace = absl::Hours(24);
  absl::Duration algorithm_timeout = absl::Seconds(60);  // of plugins and scripts, for a layer
  bool reflection = false;
  // HOST:PORT for metrics and probes, which have no authentication; beyond loopback only with
  // allow_insecure_listen. Empty: none.
  std::string metrics_listen;
  ShmSocketOptions shm_socket;
  SessionStore::Options sessions;
  std::shared_ptr<Storage> storage;  // null: sessions live in memory only

  // Null: the defaults of a production server. The clock and the registry outlive the server.
  std::shared_ptr<Authenticator> authenticator;
  Clock* clock = nullptr;
  const compression::Registry* registry = nullptr;
};

// Serves from Start until Drain or destruction. Thread-safe.
class Server {
 public:
  // INVALID_ARGUMENT for options out of range, for unreadable certificates, and for an address
  // beyond loopback without both TLS and authentication, unless allow_insecure_listen is set;
  // UNAVAILABLE when it cannot listen on the address.
  static absl::StatusOr<std::unique_ptr<Server>> Start(const ServerOptions& options);

  // Stops at once: running calls are cancelled.
  ~Server();

  int port() const;
  int metrics_port() const;  // 0: none

  // Reports NOT_SERVING, refuses new calls with UNAVAILABLE, lets running ones finish for up to
  // `timeout`, cancels the rest, and stops. Blocks until all is done; a second call does nothing.
  void Drain(absl::Duration timeout);

  // For tests and metrics.
  int64_t memory_reserved() const;
  int64_t memory_waiting() const;  // calls
  int64_t live_sessions() const;
  int64_t shared_bytes() const;  // mapped for trainers on this host
  int connections() const;
  int shm_connections() const;

 private:
  class Impl;
  explicit Server(std::unique_ptr<Impl> impl);

  const std::unique_ptr<Impl> impl_;
};

// The project's version.
absl::string_view ServerVersion();

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_SERVER_H_
