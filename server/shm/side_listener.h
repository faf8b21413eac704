// The side socket, over which trainers on this host share memory with the server.
#ifndef NNI_COMPRESSION_SERVER_SHM_SIDE_LISTENER_H_
#define NNI_COMPRESSION_SERVER_SHM_SIDE_LISTENER_H_

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
#include "server/shm/side_connection.h"

namespace nni_compression::server {

struct SideSocketOptions {
  std::string path;           // empty: no side socket
  std::vector<uid_t> uids;    // peers that are let in, see CheckUids; empty: the server's own user
  int max_connections = 256;  // at a time; further ones are closed at once
  int max_regions = 64;       // of a connection
  int64_t max_bytes = 0;      // mapped at a time, by all; half of it by one; 0: the memory
  absl::Duration hello_timeout = absl::Seconds(5);
};

// INVALID_ARGUMENT where one of these stands for more users than one, or for none, in the user
// namespace of this process, as its `uid_map` has it: whoever has no number there is 65534.
absl::Status CheckUids(const std::vector<uid_t>& uids,
                       const std::string& uid_map = "/proc/self/uid_map");

// Serves the socket with one thread, which answers packets and never waits for a peer: one that
// does not take its answers loses its connection. Thread-safe.
class SideListener {
 public:
  // Creates the socket's file. INVALID_ARGUMENT for a path that cannot be one and for users that
  // cannot be told apart, UNAVAILABLE when another server listens there. All pointers outlive the
  // listener.
  static absl::StatusOr<std::unique_ptr<SideListener>> Start(
      const SideSocketOptions& options, std::shared_ptr<Authenticator> authenticator,
      RegionTable* table);

  // Closes all connections and removes the file.
  ~SideListener();

  // What tests and metrics look at.
  int connections() const { return connections_; }

 private:
  struct Peer {
    Peer(FileDescriptor fd, const SideConnection::Limits& limits, Authenticator* authenticator,
         RegionTable* table, absl::Time deadline)
        : socket(std::move(fd)),
          connection(limits, authenticator, table),
          hello_deadline(deadline) {}

    FileDescriptor socket;
    SideConnection connection;
    absl::Time hello_deadline;
  };

  SideListener(const SideSocketOptions& options, std::shared_ptr<Authenticator> authenticator,
               RegionTable* table, SocketFile socket, FileDescriptor wake_up);

  void Loop();
  void Accept();
  bool Admits(int socket) const;
  bool Serve(Peer& peer);
  absl::Duration NextTimeout(absl::Time now) const;

  const SideSocketOptions options_;
  const std::shared_ptr<Authenticator> authenticator_;
  RegionTable* const table_;
  const SocketFile socket_;
  const FileDescriptor wake_up_;  // an eventfd: it is time to stop
  std::atomic<int> connections_{0};
  std::list<Peer> peers_;    // of the thread
  absl::Time accept_after_;  // of the thread: there were no file descriptors left
  std::thread thread_;       // last: it uses the others
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_SHM_SIDE_LISTENER_H_
