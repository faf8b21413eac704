// A listening Unix socket and its file.
#ifndef NNI_COMPRESSION_SERVER_NET_SOCKET_FILE_H_
#define NNI_COMPRESSION_SERVER_NET_SOCKET_FILE_H_

#include <sys/types.h>

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/platform/file_descriptor.h"

namespace nni_compression::server {

// Listens as long as it exists; the destructor removes the file if it is still its own.
// Thread-compatible.
class SocketFile {
 public:
  // A socket of this type (SOCK_STREAM, SOCK_SEQPACKET) whose file has `mode`, or the mode that the
  // umask leaves. The file of a dead server is replaced. Errors name `flag`: INVALID_ARGUMENT for a
  // path that is too long or exists and is not a socket; UNAVAILABLE when a process listens there,
  // or the file cannot be created.
  static absl::StatusOr<SocketFile> Listen(absl::string_view flag, int type,
                                           const std::string& path, std::optional<mode_t> mode);

  SocketFile(SocketFile&&) = default;
  SocketFile& operator=(SocketFile&&) = delete;
  ~SocketFile();

  int fd() const { return socket_.get(); }

 private:
  SocketFile(std::string path, FileDescriptor socket, dev_t device, ino_t inode)
      : path_(std::move(path)), socket_(std::move(socket)), device_(device), inode_(inode) {}

  std::string path_;
  FileDescriptor socket_;
  dev_t device_;
  ino_t inode_;
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_NET_SOCKET_FILE_H_
