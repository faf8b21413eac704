// Accepts connections, up to a limit.
#ifndef NNI_COMPRESSION_SERVER_NET_CONNECTION_LISTENER_H_
#define NNI_COMPRESSION_SERVER_NET_CONNECTION_LISTENER_H_

#include <sys/types.h>

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/base/mutex.h"
#include "server/net/socket_file.h"
#include "server/platform/file_descriptor.h"

namespace nni_compression::server {

// Accepts connections with one thread and passes them to gRPC. On its own, gRPC 1.51 has no
// connection limit, and stops accepting for good once the process runs out of descriptors. This
// closes connections above the limit at once, and retries when it runs out of descriptors.
// Thread-safe.
class ConnectionListener {
 public:
  // Gets a connected, non-blocking socket, and closes it when the connection ends.
  using Handler = std::function<void(int listener, int socket)>;

  // Listens on all addresses of HOST:PORT (port 0 picks one), or on unix:PATH or
  // unix-abstract:NAME. At most `max_connections` are open at a time, fewer if the descriptor limit
  // of the process requires it. A peer that does not acknowledge data for `user_timeout` loses its
  // connection. UNAVAILABLE when it cannot listen on that address.
  static absl::StatusOr<std::unique_ptr<ConnectionListener>> Listen(const std::string& address,
                                                                    int max_connections,
                                                                    absl::Duration user_timeout);

  // Stops.
  ~ConnectionListener();

  // Starts accepting; until then connections wait. Called once.
  void Start(Handler handler);

  // Stops accepting; `handler` is not called any more. Open connections stay open.
  void Stop();

  int port() const { return port_; }  // 0 for a Unix socket
  int max_connections() const { return max_connections_; }

  // Open connections; checks each of them.
  int connections();

 private:
  // A socket that was passed on. Its number may have been reused, its inode has not.
  struct Connection {
    int socket;
    ino_t inode;
  };

  explicit ConnectionListener(int max_connections);

  absl::Status ListenOnUnix(const std::string& address);
  void Loop();
  bool Accept(int listener);  // returns whether to continue
  bool Admit(int socket);
  void RemoveEnded() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const int max_connections_;
  int port_ = 0;
  std::optional<SocketFile> file_;
  std::vector<FileDescriptor> sockets_;
  std::vector<int> listeners_;    // of file_ and sockets_
  const FileDescriptor wake_up_;  // an eventfd that signals the end
  Handler handler_;
  Mutex mutex_;
  std::vector<Connection> connections_ ABSL_GUARDED_BY(mutex_);  // may include ended ones
  using SteadyTime = std::chrono::steady_clock::time_point;      // independent of the system clock
  SteadyTime last_sweep_ ABSL_GUARDED_BY(mutex_);                // of connections_
  std::optional<SteadyTime> last_warning_ ABSL_GUARDED_BY(mutex_);  // that the limit is reached
  bool paused_ = false;  // used on the thread only: descriptors ran out
  std::thread thread_;
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_NET_CONNECTION_LISTENER_H_
