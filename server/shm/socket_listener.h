// The shared-memory socket: trainers on this host pass memfds to the server over it.
#ifndef NNI_COMPRESSION_SERVER_SHM_SOCKET_LISTENER_H_
#define NNI_COMPRESSION_SERVER_SHM_SOCKET_LISTENER_H_

#include <sys/types.h>

#include <atomic>
#include <list>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/auth/authenticator.h"
#include "server/net/socket_file.h"
#include "server/platform/file_descriptor.h"
#include "server/shm/region_table.h"
#include "server/shm/socket_connection.h"

namespace nni_compression::server {

struct ShmSocketOptions {
  std::string path;           // empty: no socket, unless it is automatic
  bool automatic = false;     // at a path where clients look, if there can be one
  std::vector<uid_t> uids;    // admitted users, see CheckUids; empty: the server's own
  int max_connections = 256;  // further ones are closed at once
  int max_regions = 64;       // per connection
  int64_t max_bytes = 0;      // of all connections, half of it per connection; 0: the memory
  absl::Duration hello_timeout = absl::Seconds(5);
};

// INVALID_ARGUMENT unless each uid identifies exactly one user in the user namespace of this
// process, described by `uid_map`. Users that are not mapped there all appear as 65534.
absl::Status CheckUids(const std::vector<uid_t>& uids,
                       const std::string& uid_map = "/proc/self/uid_map");

// Serves the socket with one thread, which never blocks on a peer: a peer that does not read its
// answers loses its connection. Thread-safe.
class SocketListener {
 public:
  // Creates the socket's file. INVALID_ARGUMENT for an invalid path and for the users of CheckUids,
  // UNAVAILABLE when another server listens there. All pointers outlive the listener.
  static absl::StatusOr<std::unique_ptr<SocketListener>> Start(
      const ShmSocketOptions& options, std::shared_ptr<Authenticator> authenticator,
      RegionTable* table);

  // Closes all connections and removes the file.
  ~SocketListener();

  // For tests and metrics.
  int connections() const { return connections_; }

 private:
  struct Peer {
    Peer(FileDescriptor fd, const SocketConnection::Limits& limits, Authenticator* authenticator,
         RegionTable* table, absl::Time deadline)
        : socket(std::move(fd)),
          connection(limits, authenticator, table),
          hello_deadline(deadline) {}

    FileDescriptor socket;
    SocketConnection connection;
    absl::Time hello_deadline;
  };

  SocketListener(const ShmSocketOptions& options, std::shared_ptr<Authenticator> authenticator,
                 RegionTable* table, SocketFile socket, FileDescriptor wake_up);

  void Loop();
  void Accept();
  bool Admits(int socket) const;
  bool Serve(Peer& peer);
  absl::Duration NextTimeout(absl::Time now) const;

  const ShmSocketOptions options_;
  const std::shared_ptr<Authenticator> authenticator_;
  RegionTable* const table_;
  const SocketFile socket_;
  const FileDescriptor wake_up_;  // an eventfd that signals the end
  std::atomic<int> connections_{0};
  std::list<Peer> peers_;    // used on the thread only
  absl::Time accept_after_;  // used on the thread only: file descriptors ran out
  std::thread thread_;       // last: it uses the members above
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_SHM_SOCKET_LISTENER_H_
