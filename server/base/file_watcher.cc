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

// A change counts after one to two of these.
constexpr absl::Duration kLookPeriod = absl::Milliseconds(250);

// What tells one version of a file from another.
struct FileVersion {
  dev_t device = 0;
  ino_t inode = 0;
  off_t size = 0;
  timespec modified = {};
  timespec changed = {};  // its metadata, too

  bool operator==(const FileVersion& other) const {
    const auto same = [](const timespec& a, const timespec& b) {
      return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec;
    };
    return device == other.device && inode == other.inode && size == other.size &&
           same(modified, other.modified) && same(changed, other.changed);
  }
};

// One for each file; nullopt where there is none.
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
  // A pipe would make even the opening wait.
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
    if (done > max_bytes) return cannot(too_large);  // it has grown meanwhile
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
    // Whatever was written while they were read is found at the next look.
    unread_ = FileVersionsOf(options_.files) != seen_;
    return absl::OkStatus();
  }

  void Look() {
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
    while (BeginLook()) {
      Look();
      EndLook();
    }
  }

  // Whether the thread ends right away.
  bool Stop() {
    MutexLock lock(&mutex_);
    stopped_ = true;
    changed_.NotifyAll();
    return !looking_;
  }

 private:
  // When it is time; false once it is stopped.
  bool BeginLook() {
    MutexLock lock(&mutex_);
    if (!stopped_) changed_.WaitFor(&mutex_, kLookPeriod);
    looking_ = !stopped_;
    return looking_;
  }

  void EndLook() {
    MutexLock lock(&mutex_);
    looking_ = false;
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
  // Of the thread that looks.
  FileVersions seen_;
  bool unread_ = false;     // what was seen last
  std::string last_error_;  // said in the log
  Mutex mutex_;
  CondVar changed_;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  bool looking_ ABSL_GUARDED_BY(mutex_) = false;
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

void FileWatcher::Look() { state_->Look(); }

}  // namespace nni_compression::server
