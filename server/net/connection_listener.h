// The sockets that clients connect to, and how many connections there may be.
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

// Takes connections with one thread and hands them to gRPC. By itself gRPC 1.51 takes connections
// without a limit and, once the process has no descriptor left, no more of them for good; this
// closes what is above its limit at once, and waits where there are no descriptors. Thread-safe.
class ConnectionListener {
 public:
  // Gets a connected socket, which does not block, and closes it when the connection ends.
  using Take = std::function<void(int listener, int socket)>;

  // Listens on all addresses that HOST:PORT stands for (port 0 picks one), or on unix:PATH or
  // unix-abstract:NAME. At most `max_connections` live at a time, and fewer where the process may
  // not have as many descriptors. A peer that does not acknowledge what was sent for
  // `user_timeout` loses its connection. UNAVAILABLE where that address cannot be listened on.
  static absl::StatusOr<std::unique_ptr<ConnectionListener>> Listen(const std::string& address,
                                                                    int max_connections,
                                                                    absl::Duration user_timeout);

  // Stops.
  ~ConnectionListener();

  // From now on, once; until then connections wait.
  void Start(Take take);

  // Takes no more connections, and calls `take` no more. Those that live go on.
  void Stop();

  int port() const { return port_; }  // 0 of a Unix socket
  int max_connections() const { return max_connections_; }

  // That live now. Looks at each of them.
  int connections();

 private:
  // A socket that was handed on. Its number may be another's by now, its inode is not.
  struct Connection {
    int socket;
    ino_t inode;
  };

  explicit ConnectionListener(int max_connections);

  absl::Status ListenOnUnix(const std::string& address);
  void Loop();
  bool Accept(int listener);  // whether there may be another
  bool Admit(int socket);
  void Forget() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const int max_connections_;
  int port_ = 0;
  std::optional<SocketFile> file_;
  std::vector<FileDescriptor> sockets_;
  std::vector<int> listeners_;    // of both
  const FileDescriptor wake_up_;  // an eventfd: it is time to stop
  Take take_;
  Mutex mutex_;
  std::vector<Connection> connections_ ABSL_GUARDED_BY(mutex_);  // and some that have ended
  using SteadyTime = std::chrono::steady_clock::time_point;      // whatever becomes of the clock
  SteadyTime last_sweep_ ABSL_GUARDED_BY(mutex_);                // for connections that have ended
  std::optional<SteadyTime> last_warning_ ABSL_GUARDED_BY(mutex_);  // in the log, that it is full
  bool pauses_ = false;  // of the thread: there were no descriptors left
  std::thread thread_;
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_NET_CONNECTION_LISTENER_H_
