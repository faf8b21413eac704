#include "server/storage/data_directory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/base/clock.h"
#include "server/base/log.h"
#include "server/disk/layout.h"

namespace nni_compression::server {
namespace {

constexpr absl::Duration kLockPoll = absl::Milliseconds(50);

// Locks a file of the data directory `path` with flock(2), polling until `end`. `used` says in the
// error message what holds the lock.
absl::Status Lock(const FileDescriptor& file, int kind, const std::string& path, absl::Time end,
                  absl::string_view used) {
  bool logged = false;
  while (flock(file.get(), kind | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK && errno != EINTR) return FileError("lock", path);
    if (Clock::System()->Now() >= end) {
      return absl::FailedPreconditionError(
          absl::StrCat("data_dir '", path, "' is ", used, " (see --data_dir_lock_wait)"));
    }
    if (!std::exchange(logged, true)) {
      Log(LogLevel::kInfo, "waiting_for_data_dir", {{"path", path}});
    }
    absl::SleepFor(kLockPoll);
  }
  return absl::OkStatus();
}

struct RemoteFileSystem {
  uint32_t type;
  const char* name;
};

constexpr RemoteFileSystem kRemote[] = {
    {0x6969, "NFS"},      {0x517B, "SMB"},        {0xFF534D42, "CIFS"},  {0xFE534D42, "SMB"},
    {0x5346414F, "AFS"},  {0x6B414653, "AFS"},    {0x73757245, "Coda"},  {0x564C, "NCP"},
    {0x00C36400, "Ceph"}, {0x0BD00BD0, "Lustre"}, {0x47504653, "GPFS"},  {0x7461636F, "OCFS2"},
    {0x01161970, "GFS2"}, {0x01021997, "9P"},     {0x19830326, "BeeGFS"}};

}  // namespace

absl::Status CheckFileSystem(const std::string& path, int64_t type) {
  for (const RemoteFileSystem& remote : kRemote) {
    if (static_cast<uint32_t>(type) != remote.type) continue;
    return absl::FailedPreconditionError(
        absl::StrCat("data_dir '", path, "' is on ", remote.name,
                     ", a network file system; it must be on a disk of this machine"));
  }
  return absl::OkStatus();
}

absl::Status FileError(const std::string& what, const std::string& path) {
  const int error = errno;
  const std::string message = absl::StrCat("cannot ", what, " '", path, "': ", strerror(error));
  switch (error) {
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
    case EROFS:
    case EACCES:
    case EPERM:
    case EIO:
    case EMFILE:
    case ENFILE:
    case ENOMEM:
      return absl::ResourceExhaustedError(message);
    default:
      return absl::InternalError(message);
  }
}

absl::Status MakeDirectory(const std::string& path) {
  if (mkdir(path.c_str(), 0700) == 0 || errno == EEXIST) return absl::OkStatus();
  return FileError("make", path);
}

absl::Status SyncDirectory(const std::string& path) {
  const FileDescriptor directory(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory.valid() || fsync(directory.get()) != 0) return FileError("sync", path);
  return absl::OkStatus();
}

absl::StatusOr<DataDirectory> DataDirectory::Open(const std::string& path,
                                                  absl::Duration lock_wait) {
  const absl::Time end = Clock::System()->Now() + lock_wait;
  FileDescriptor directory;
  do {
    if (absl::Status status = MakeDirectory(path); !status.ok()) return status;
    directory = FileDescriptor(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!directory.valid()) return FileError("open", path);
    struct statfs system = {};
    if (fstatfs(directory.get(), &system) != 0) return FileError("look at", path);
    if (absl::Status status = CheckFileSystem(path, system.f_type); !status.ok()) return status;
    if (absl::Status status = Lock(directory, LOCK_SH, path, end, "being written by a restore");
        !status.ok()) {
      return status;
    }
  } while (!layout::IsAt(directory.get(), path));
  if (layout::HasUnfinishedCopy(path)) {
    return absl::FailedPreconditionError(
        absl::StrCat("data_dir '", path, "' has a restore that was not finished: run ",
                     "`compressionctl restore` again, or remove the directory"));
  }
  const std::string lock_path = layout::PathIn(path, layout::kLock);
  FileDescriptor lock(open(lock_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!lock.valid()) return FileError("open", lock_path);
  if (absl::Status status =
          Lock(lock, LOCK_EX, path, end, "in use by another server; two must not share one");
      !status.ok()) {
    return status;
  }
  return DataDirectory(path, std::move(lock), std::move(directory));
}

}  // namespace nni_compression::server
