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

// A file as it was read.
struct FileContents {
  std::string bytes;
  mode_t mode = 0;
};

// Keeps what was read from a set of files up to date. A change counts once two looks in a row have
// found the same versions, so that a file that is being written is not read half; the files are
// then read together. What cannot be read or used changes nothing, which is logged; it is read
// again once it has changed, or, where reading failed, at the next look.
//
// Only regular files are read, so that no pipe makes a reader wait. A disk that does not answer
// holds up the watcher's own thread and nothing else, the destructor included.
class FileWatcher {
 public:
  struct File {
    std::string flag;  // that names it, for messages
    std::string path;
  };
  struct Options {
    std::string subject;  // "tokens": the log has tokens_not_read
    std::vector<File> files;
    size_t max_bytes = 0;  // of each
  };

  // Takes the contents, in the order of the files, or says what is wrong with them. Called by one
  // thread at a time. It may outlive the watcher, so it holds on to what it needs.
  using Load = std::function<absl::Status(const std::vector<FileContents>& contents)>;

  // Reads and loads the files. INVALID_ARGUMENT that names the flag and the file when one cannot
  // be read; an error of `load` is passed on.
  static absl::StatusOr<std::unique_ptr<FileWatcher>> Open(Options options, Load load);

  // Stops. Does not wait for a look that is under way.
  ~FileWatcher();

  // Looks four times a second from now on, on a thread of its own. Once.
  void Start();

  // One look. For tests, instead of Start.
  void Look();

 private:
  class State;
  explicit FileWatcher(std::shared_ptr<State> state) : state_(std::move(state)) {}

  const std::shared_ptr<State> state_;
  std::thread thread_;
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_BASE_FILE_WATCHER_H_
