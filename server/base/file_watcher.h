// Configuration files that may change while the server runs.
#ifndef NNI_COMPRESSION_SERVER_BASE_FILE_WATCHER_H_
#define NNI_COMPRESSION_SERVER_BASE_FILE_WATCHER_H_

#include <sys/types.h>

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace nni_compression::server {

// The content of a file, and its mode at that time.
struct FileContents {
  std::string bytes;
  mode_t mode = 0;
};

// Reloads a set of files when they change. A change takes effect once two polls in a row have found
// the same versions, so that a half-written file is not loaded; the files are then read together.
// Files that cannot be read or loaded change nothing; the error is logged, and they are read again
// once they have changed or, if reading failed, at the next poll.
//
// Only regular files are read, since a pipe could block. A disk that hangs blocks the watcher's own
// thread and nothing else, not even the destructor.
class FileWatcher {
 public:
  struct File {
    std::string flag;  // the flag that names the file, for messages
    std::string path;
  };
  struct Options {
    std::string subject;  // "tokens" for the log event tokens_not_read
    std::vector<File> files;
    size_t max_bytes = 0;  // of each file
  };

  // Accepts the contents, in the order of the files, or returns what is wrong with them. Called by
  // one thread at a time. It may outlive the watcher, so it must own what it uses.
  using Load = std::function<absl::Status(const std::vector<FileContents>& contents)>;

  // Reads and loads the files. INVALID_ARGUMENT, naming the flag and the file, when one cannot be
  // read; an error of `load` is returned as it is.
  static absl::StatusOr<std::unique_ptr<FileWatcher>> Open(Options options, Load load);

  // Stops. Does not wait for a poll that is running.
  ~FileWatcher();

  // Starts polling four times a second, on a thread of its own. At most once.
  void Start();

  // Polls once. For tests, instead of Start.
  void Poll();

 private:
  class State;
  explicit FileWatcher(std::shared_ptr<State> state) : state_(std::move(state)) {}

  const std::shared_ptr<State> state_;
  std::thread thread_;
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_BASE_FILE_WATCHER_H_
