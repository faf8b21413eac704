#include "server/base/file_watcher.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "server/base/log.h"
#include "server/base/mutex.h"
#include "server/platform/file_descriptor.h"

namespace nni_compression::server {
namespace {

// A change takes effect after one to two periods.
constexpr absl::Duration kPollPeriod = absl::Milliseconds(250);

// What tells one version of a file from another.
struct FileVersion {
  dev_t device = 0;
  ino_t inode = 0;
  off_t size = 0;
  timespec modified = {};
  timespec changed = {};  // st_ctim, which covers metadata

  bool operator==(const FileVersion& other) const {
    const auto same = [](const timespec& a, const timespec& b) {
      return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec;
    };
    return device == other.device && inode == other.inode && size == other.size &&
           same(modified, other.modified) && same(changed, other.changed);
  }
};

// One for each file; nullopt for a missing one.
using FileVersions = std::vector<std::optional<FileVersion>>;

FileVersions FileVersionsOf(const std::vector<FileWatcher::File>& files) {
  FileVersions versions;
  for (const FileWatcher::File& file : files) {
    struct stat found;
    versions.emplace_back();
    if (stat(file.path.c_str(), &found) == 0) {
      versions.back() =
          FileVersion{found.st_dev, found.st_ino, found.st_size, found.st_mtim, found.st_ctim};
    }
  }
  return versions;
}

absl::StatusOr<FileContents> ReadRegularFile(const FileWatcher::File& file, size_t max_bytes) {
  const auto cannot = [&](absl::string_view why) {
    return absl::InvalidArgumentError(
        absl::StrCat(file.flag, " '", file.path, "' cannot be read: ", why));
  };
  // O_NONBLOCK, since even opening a pipe could block.
  const FileDescriptor fd(open(file.path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  struct stat found;
  if (!fd.valid() || fstat(fd.get(), &found) != 0) return cannot(std::strerror(errno));
  if (!S_ISREG(found.st_mode)) return cannot("it is not a regular file");
  const std::string too_large = absl::StrCat("it has more than ", max_bytes, " bytes");
  if (found.st_size > static_cast<off_t>(max_bytes)) return cannot(too_large);
  FileContents contents;
  contents.mode = found.st_mode;
  while (true) {
    const size_t done = contents.bytes.size();
    if (done > max_bytes) return cannot(too_large);  // the file has grown
    contents.bytes.resize(std::max<size_t>(done + 4096, static_cast<size_t>(found.st_size) + 1));
    const ssize_t count =
        read(fd.get(), contents.bytes.data() + done, contents.bytes.size() - done);
    if (count < 0 && errno != EINTR) return cannot(std::strerror(errno));
    contents.bytes.resize(done + static_cast<size_t>(std::max<ssize_t>(count, 0)));
    if (count == 0) return contents;
  }
}

}  // namespace

class FileWatcher::State {
 public:
  State(Options options, Load load) : options_(std::move(options)), load_(std::move(load)) {}

  absl::Status LoadFirst() {
    seen_ = FileVersionsOf(options_.files);
    if (absl::Status status = ReadAndLoad(); !status.ok()) return status;
    // The next poll finds what was written while the files were read.
    unread_ = FileVersionsOf(options_.files) != seen_;
    return absl::OkStatus();
  }

  void Poll() {
    FileVersions now = FileVersionsOf(options_.files);
    if (now != seen_) {
      seen_ = std::move(now);
      unread_ = true;
      return;
    }
    if (!unread_) return;
    const absl::Status status = ReadAndLoad();
    if (status.ok()) {
      last_error_.clear();
    } else if (last_error_ != status.message()) {
      last_error_ = std::string(status.message());
      Log(LogLevel::kError, absl::StrCat(options_.subject, "_not_read"), {{"error", last_error_}});
    }
  }

  void Loop() {
    while (BeginPoll()) {
      Poll();
      EndPoll();
    }
  }

  // Returns whether the thread ends at once, so that it can be joined.
  bool Stop() {
    MutexLock lock(&mutex_);
    stopped_ = true;
    changed_.NotifyAll();
    return !polling_;
  }

 private:
  // Waits until the next poll is due. False once stopped.
  bool BeginPoll() {
    MutexLock lock(&mutex_);
    if (!stopped_) changed_.WaitFor(&mutex_, kPollPeriod);
    polling_ = !stopped_;
    return polling_;
  }

  void EndPoll() {
    MutexLock lock(&mutex_);
    polling_ = false;
  }

  absl::Status ReadAndLoad() {
    std::vector<FileContents> contents;
    for (const File& file : options_.files) {
      absl::StatusOr<FileContents> read = ReadRegularFile(file, options_.max_bytes);
      if (!read.ok()) return read.status();
      contents.push_back(*std::move(read));
    }
    unread_ = false;
    return load_(contents);
  }

  const Options options_;
  const Load load_;
  // Used by the polling thread only.
  FileVersions seen_;
  bool unread_ = false;     // whether `seen_` was not loaded yet
  std::string last_error_;  // the last one logged
  Mutex mutex_;
  CondVar changed_;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  bool polling_ ABSL_GUARDED_BY(mutex_) = false;
};

absl::StatusOr<std::unique_ptr<FileWatcher>> FileWatcher::Open(Options options, Load load) {
  auto state = std::make_shared<State>(std::move(options), std::move(load));
  if (absl::Status status = state->LoadFirst(); !status.ok()) return status;
  return std::unique_ptr<FileWatcher>(new FileWatcher(std::move(state)));
}

FileWatcher::~FileWatcher() {
  const bool ends = state_->Stop();
  if (!thread_.joinable()) return;
  if (ends) {
    thread_.join();
  } else {
    thread_.detach();
  }
}

void FileWatcher::Start() {
  thread_ = std::thread([state = state_] { state->Loop(); });
}

void FileWatcher::Poll() { state_->Poll(); }

}  // namespace nni_compression::server
