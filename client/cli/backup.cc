#include "client/cli/backup.h"

#include <fcntl.h>
#include <sqlite3.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <sstream>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/disk/layout.h"
#include "server/platform/file_descriptor.h"
#include "server/platform/sha256.h"

namespace nni_compression::cli {
namespace {

namespace fs = std::filesystem;

using server::FileDescriptor;
using server::layout::kCatalogue;
using server::layout::kKeepFiles;
using server::layout::kRecords;
using server::layout::kUnfinishedCatalogue;

constexpr int kBusyTimeoutMs = 10000;

absl::Status Failed(absl::string_view what, const fs::path& path, const std::error_code& error) {
  return absl::UnavailableError(
      absl::StrCat("cannot ", what, " '", path.string(), "': ", error.message()));
}

std::error_code LastError() { return std::error_code(errno, std::generic_category()); }

// The user and group that will own a copy.
struct Owner {
  uid_t uid = 0;
  gid_t gid = 0;
  bool required = false;  // whether failing to set the owner is an error
};

// A new directory that only this process uses; its content is removed unless the copy is finished.
class Target {
 public:
  static absl::StatusOr<Target> Make(const fs::path& folder);

  Target(Target&& other) noexcept
      : folder_(std::move(other.folder_)),
        directory_(std::move(other.directory_)),
        made_(other.made_),
        unfinished_(std::exchange(other.unfinished_, false)) {}
  ~Target();

  // Renames the catalogue into place last and atomically: without it the copy is not valid. The
  // folder's owner changes just before that, so that no other user can replace files in it that are
  // still to be opened.
  absl::Status Finish(const Owner& owner);

 private:
  Target(fs::path folder, FileDescriptor directory, bool made)
      : folder_(std::move(folder)), directory_(std::move(directory)), made_(made) {}

  fs::path folder_;
  FileDescriptor directory_;
  bool made_ = false;
  bool unfinished_ = false;
};

// Removes the unfinished catalogue last, as it marks the other files as those of a copy.
void RemoveCopy(const fs::path& folder) {
  std::error_code ignored;
  fs::remove_all(folder / kRecords, ignored);
  for (const char* const suffix : {"-journal", "-wal", "-shm", ""}) {
    fs::remove(folder / absl::StrCat(kUnfinishedCatalogue, suffix), ignored);
  }
}

absl::StatusOr<Target> Target::Make(const fs::path& folder) {
  std::error_code error;
  const auto not_empty = [&] {
    return absl::InvalidArgumentError(
        absl::StrCat("'", folder.string(), "' is not empty; it must be a new directory"));
  };
  const bool there = fs::exists(folder, error);
  if (there && !fs::is_directory(folder, error)) return not_empty();
  if (!fs::create_directories(folder, error) && error) return Failed("make", folder, error);
  FileDescriptor directory(open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory.valid()) return Failed("open", folder, LastError());
  const bool locked = flock(directory.get(), LOCK_EX | LOCK_NB) == 0;
  if (!locked || !server::layout::IsAt(directory.get(), folder)) {
    error = LastError();
    if (!locked && error != std::errc::operation_would_block) return Failed("lock", folder, error);
    return absl::UnavailableError(
        absl::StrCat("a server, or another backup or restore, uses '", folder.string(), "'"));
  }
  Target target(folder, std::move(directory), !there);
  // The remains of a killed copy may be removed.
  if (server::layout::HasUnfinishedCopy(folder)) RemoveCopy(folder);
  if (!fs::is_empty(folder, error)) return error ? Failed("read", folder, error) : not_empty();
  fs::permissions(folder, fs::perms::owner_all, error);
  if (error) return Failed("protect", folder, error);
  target.unfinished_ = true;
  return target;
}

Target::~Target() {
  if (unfinished_) {
    RemoveCopy(folder_);
    std::error_code ignored;
    if (made_) fs::remove(folder_, ignored);
  }
}

// Sets the owner of the file at `path`, through `fd` if it is open.
absl::Status GiveTo(const Owner& owner, const fs::path& path, int fd = -1) {
  if (geteuid() != 0) return absl::OkStatus();
  const int result =
      fd < 0 ? lchown(path.c_str(), owner.uid, owner.gid) : fchown(fd, owner.uid, owner.gid);
  // EINVAL: a user namespace does not have the owner.
  const bool refused = result != 0 && (errno == EPERM || errno == EINVAL);
  if (result == 0 || (refused && !owner.required)) return absl::OkStatus();
  return Failed("set the owner of", path, LastError());
}

using Connection = std::unique_ptr<sqlite3, int (*)(sqlite3*)>;

absl::StatusOr<Connection> Open(const fs::path& path, int flags) {
  sqlite3* db = nullptr;
  const int result = sqlite3_open_v2(path.c_str(), &db, flags, nullptr);
  Connection connection(db, sqlite3_close);
  if (result != SQLITE_OK) {
    return absl::UnavailableError(
        absl::StrCat("cannot open '", path.string(), "': ", sqlite3_errstr(result)));
  }
  sqlite3_busy_timeout(db, kBusyTimeoutMs);
  return connection;
}

absl::Status CheckIntegrity(sqlite3* db, const fs::path& path) {
  std::string verdict;
  const auto keep = [](void* out, int, char** values, char**) {
    static_cast<std::string*>(out)->append(values[0] == nullptr ? "" : values[0]);
    return 0;
  };
  if (sqlite3_exec(db, "PRAGMA integrity_check(1)", keep, &verdict, nullptr) == SQLITE_OK &&
      verdict == "ok") {
    return absl::OkStatus();
  }
  return absl::DataLossError(
      absl::StrCat("'", path.string(), "' is damaged: ", verdict, " ", sqlite3_errmsg(db)));
}

// Copies all pages in one step, so that concurrent writes of a server do not restart the backup.
absl::Status CopyCatalogue(const fs::path& from, const fs::path& to) {
  absl::StatusOr<Connection> source = Open(from, SQLITE_OPEN_READWRITE);
  if (!source.ok()) return source.status();
  absl::StatusOr<Connection> target = Open(to, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE);
  if (!target.ok()) return target.status();
  sqlite3_backup* const backup = sqlite3_backup_init(target->get(), "main", source->get(), "main");
  const int result = backup == nullptr ? SQLITE_ERROR : sqlite3_backup_step(backup, -1);
  if (backup != nullptr) sqlite3_backup_finish(backup);
  if (result != SQLITE_DONE) {
    return absl::UnavailableError(
        absl::StrCat("cannot copy '", from.string(), "': ", sqlite3_errstr(result)));
  }
  return CheckIntegrity(target->get(), from);
}

absl::Status CheckDigest(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream content;
  content << file.rdbuf();
  const std::string name = path.parent_path().filename() / path.filename();
  if (file && server::layout::RecordPath(server::Sha256(content.str())) == name) {
    return absl::OkStatus();
  }
  return absl::DataLossError(absl::StrCat("'", path.string(), "' is damaged"));
}

// A backup without records/ is valid only if its catalogue refers to no record file.
absl::Status CheckNoneIsNamed(const fs::path& catalogue, const fs::path& records) {
  absl::StatusOr<Connection> db = Open(catalogue, SQLITE_OPEN_READWRITE);
  if (!db.ok()) return db.status();
  const auto found = [](void* named, int, char**, char**) {
    *static_cast<bool*>(named) = true;
    return 0;
  };
  bool named = false;
  if (sqlite3_exec(db->get(), "SELECT 1 FROM records WHERE digest IS NOT NULL LIMIT 1", found,
                   &named, nullptr) != SQLITE_OK) {
    return absl::DataLossError(
        absl::StrCat("cannot read '", catalogue.string(), "': ", sqlite3_errmsg(db->get())));
  }
  if (!named) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat("'", records.string(), "' is missing"));
}

absl::StatusOr<CopiedData> CopyRecords(const fs::path& from, const fs::path& to, bool verify,
                                       const Owner& owner) {
  CopiedData copied;
  std::error_code error;
  if (!fs::create_directory(to, error) && error) return Failed("make", to, error);
  if (absl::Status given = GiveTo(owner, to); !given.ok()) return given;
  if (!fs::exists(from, error) && !error) return copied;
  for (auto it = fs::recursive_directory_iterator(from, error);
       !error && it != fs::recursive_directory_iterator(); it.increment(error)) {
    // Links are skipped: a caller with more rights than the server could be led to files outside of
    // the data directory.
    if (it->symlink_status(error).type() != fs::file_type::regular || it.depth() != 1) continue;
    const fs::path target = to / fs::relative(it->path(), from);
    if (fs::create_directory(target.parent_path(), error)) {
      if (absl::Status given = GiveTo(owner, target.parent_path()); !given.ok()) return given;
    }
    if (!verify) fs::create_hard_link(it->path(), target, error);
    if (verify || error) {
      error.clear();
      fs::copy_file(it->path(), target, error);
      if (error) return Failed("copy to", target, error);
      if (absl::Status given = GiveTo(owner, target); !given.ok()) return given;
    }
    if (verify) {
      if (absl::Status status = CheckDigest(target); !status.ok()) return status;
    }
    ++copied.files;
    copied.bytes += static_cast<int64_t>(fs::file_size(target, error));
  }
  if (error) return Failed("read", from, error);
  return copied;
}

absl::Status Target::Finish(const Owner& owner) {
  if (absl::Status given = GiveTo(owner, folder_ / kUnfinishedCatalogue); !given.ok()) return given;
  if (syncfs(directory_.get()) != 0) return Failed("sync", folder_, LastError());
  if (absl::Status given = GiveTo(owner, folder_, directory_.get()); !given.ok()) return given;
  if (renameat(directory_.get(), kUnfinishedCatalogue, directory_.get(), kCatalogue) != 0) {
    return Failed("finish", folder_, LastError());
  }
  unfinished_ = false;
  return fsync(directory_.get()) == 0 ? absl::OkStatus() : Failed("sync", folder_, LastError());
}

// The server creates this file, except for servers of the first version, and must be able to open
// it. So it belongs to the server's user even when root makes the backup.
absl::StatusOr<FileDescriptor> OpenKeepFiles(const std::string& data_dir, const fs::path& keep) {
  const bool there = fs::exists(fs::symlink_status(keep));
  FileDescriptor fd(open(keep.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!fd.valid()) return Failed("open", keep, LastError());
  struct stat directory;
  struct stat file;
  if (stat(data_dir.c_str(), &directory) != 0 || fstat(fd.get(), &file) != 0) return fd;
  if (file.st_uid == directory.st_uid) return fd;
  const Owner owner = {directory.st_uid, directory.st_gid, /*required=*/true};
  if (absl::Status given = GiveTo(owner, keep, fd.get()); !given.ok()) {
    if (!there) unlink(keep.c_str());
    return given;
  }
  return fd;
}

absl::StatusOr<CopiedData> Copy(const fs::path& from, const fs::path& to, bool verify) {
  std::error_code error;
  if (!fs::is_regular_file(from / kCatalogue, error)) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", from.string(), "' has no ", kCatalogue, "; it is not a server's data"));
  }
  struct stat catalogue;
  if (stat((from / kCatalogue).c_str(), &catalogue) != 0) {
    return Failed("look at", from / kCatalogue, LastError());
  }
  const Owner owner = {catalogue.st_uid, catalogue.st_gid, /*required=*/verify};
  absl::StatusOr<Target> target = Target::Make(to);
  if (!target.ok()) return target.status();
  if (absl::Status s = CopyCatalogue(from / kCatalogue, to / kUnfinishedCatalogue); !s.ok())
    return s;
  if (!fs::exists(from / kRecords, error)) {
    if (absl::Status s = CheckNoneIsNamed(to / kUnfinishedCatalogue, from / kRecords); !s.ok())
      return s;
  }
  absl::StatusOr<CopiedData> copied = CopyRecords(from / kRecords, to / kRecords, verify, owner);
  if (!copied.ok()) return copied;
  if (absl::Status status = target->Finish(owner); !status.ok()) return status;
  copied->bytes += static_cast<int64_t>(fs::file_size(to / kCatalogue, error));
  return copied;
}

}  // namespace

absl::StatusOr<CopiedData> Backup(const std::string& data_dir, const std::string& target) {
  const fs::path keep = fs::path(data_dir) / kKeepFiles;
  const absl::StatusOr<FileDescriptor> fd = OpenKeepFiles(data_dir, keep);
  if (!fd.ok()) return fd.status();
  // While the lock is held, the server removes no file that the copied catalogue may refer to.
  if (flock(fd->get(), LOCK_SH) != 0) return Failed("lock", keep, LastError());
  return Copy(data_dir, target, /*verify=*/false);
}

absl::StatusOr<CopiedData> Restore(const std::string& backup, const std::string& data_dir) {
  return Copy(backup, data_dir, /*verify=*/true);
}

}  // namespace nni_compression::cli
