#include "tests/testing/faulty_disk.h"

#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cstdarg>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <mutex>
#include <sstream>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace nni_compression::testing {
namespace {

enum class Operation {
  kRead,
  kChange,  // takes no room
  kGrow,
  kSync,
};

bool Befalls(int error, Operation operation) {
  switch (error) {
    case ENOSPC:
      return operation == Operation::kGrow || operation == Operation::kSync;
    case EROFS:
      return operation == Operation::kGrow || operation == Operation::kChange;
    default:
      return true;
  }
}

template <typename Function>
Function* Find(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

// The C library's own.
struct Libc {
  int (*open)(const char*, int, ...) = Find<int(const char*, int, ...)>("open");
  ssize_t (*read)(int, void*, size_t) = Find<ssize_t(int, void*, size_t)>("read");
  ssize_t (*pread)(int, void*, size_t, off_t) = Find<ssize_t(int, void*, size_t, off_t)>("pread64");
  ssize_t (*write)(int, const void*, size_t) = Find<ssize_t(int, const void*, size_t)>("write");
  ssize_t (*pwrite)(int, const void*, size_t,
                    off_t) = Find<ssize_t(int, const void*, size_t, off_t)>("pwrite64");
  int (*fsync)(int) = Find<int(int)>("fsync");
  int (*fdatasync)(int) = Find<int(int)>("fdatasync");
  int (*ftruncate)(int, off_t) = Find<int(int, off_t)>("ftruncate64");
  int (*fstat)(int, struct stat*) = Find<int(int, struct stat*)>("fstat64");
  int (*rename)(const char*, const char*) = Find<int(const char*, const char*)>("rename");
  int (*unlink)(const char*) = Find<int(const char*)>("unlink");
  int (*mkdir)(const char*, mode_t) = Find<int(const char*, mode_t)>("mkdir");
  int (*rmdir)(const char*) = Find<int(const char*)>("rmdir");
  dirent* (*readdir)(DIR*) = Find<dirent*(DIR*)>("readdir");
};

const Libc& libc() {
  static const Libc libc;
  return libc;
}

ino_t NumberOf(int fd) {
  struct stat properties = {};
  libc().fstat(fd, &properties);
  return properties.st_ino;
}

}  // namespace

class FaultyDisk::State {
 public:
  explicit State(std::string directory) : directory_(std::move(directory)) {}
  ~State() {
    for (const int fd : held_) close(fd);
  }

  bool Has(const std::string& path) const {
    return path.compare(0, directory_.size(), directory_) == 0 &&
           (path.size() == directory_.size() || path[directory_.size()] == '/');
  }

  bool Has(int fd) const {
    const int error = errno;
    char path[4096];
    const std::string link = "/proc/self/fd/" + std::to_string(fd);
    const ssize_t size = readlink(link.c_str(), path, sizeof(path));
    errno = error;  // readdir's end is told from its failure by it
    return size > 0 && Has(std::string(path, static_cast<size_t>(size)));
  }

  void Arm(const Fault& fault) {
    std::lock_guard lock(mutex_);
    fault_ = fault;
    armed_ = true;
    operations_ = failures_ = 0;
  }

  void Heal() {
    std::lock_guard lock(mutex_);
    armed_ = false;
  }

  int failures() const {
    std::lock_guard lock(mutex_);
    return failures_;
  }

  // Whether this one fails; errno says how.
  bool Fails(Operation operation) {
    std::lock_guard lock(mutex_);
    if (!armed_ || !Befalls(fault_.error, operation)) return false;
    ++operations_;
    if (fault_.lasting ? operations_ < fault_.at : operations_ != fault_.at) return false;
    ++failures_;
    errno = fault_.error;
    return true;
  }

  int Open(const char* path, int flags, mode_t mode) {
    const bool there = ::access(path, F_OK) == 0;
    const bool writes = (flags & O_ACCMODE) != O_RDONLY;
    const bool creates = (flags & O_CREAT) != 0 && !there;
    const Operation operation = creates  ? Operation::kGrow
                                : writes ? Operation::kChange
                                         : Operation::kRead;
    // To find that there is nothing is no operation.
    if ((there || creates) && Fails(operation)) return -1;
    const int fd = libc().open(path, flags, mode);
    if (fd < 0) return fd;
    if (creates) Hold(fd);
    if ((flags & O_TRUNC) != 0) Truncated(fd, 0);
    return fd;
  }

  // `offset`: -1 for the file's own.
  ssize_t Write(int fd, const void* data, size_t size, off_t offset) {
    const bool fails = Fails(Operation::kGrow);
    const int error = errno;
    const off_t place = offset < 0 ? lseek(fd, 0, SEEK_CUR) : offset;
    const ssize_t written = libc().pwrite(fd, data, fails ? size / 2 : size, place);
    if (written > 0) {
      Written(fd, place, std::string(static_cast<const char*>(data), static_cast<size_t>(written)));
      if (offset < 0) lseek(fd, place + written, SEEK_SET);
    }
    if (!fails) return written;
    errno = error;
    return -1;
  }

  int Truncate(int fd, off_t size) {
    if (Fails(Operation::kChange)) return -1;
    const int result = libc().ftruncate(fd, size);
    if (result == 0) Truncated(fd, size);
    return result;
  }

  // Nothing of it reaches the real disk, which would only take time.
  int Sync(int fd) {
    const bool fails = Fails(Operation::kSync);
    struct stat properties = {};
    libc().fstat(fd, &properties);
    std::lock_guard lock(mutex_);
    if (S_ISDIR(properties.st_mode)) {
      if (!fails) names_[properties.st_ino] = List(fd);
    } else {
      File& file = files_[properties.st_ino];
      if (!fails) {
        for (const auto& change : file.unsynced) change(file.synced);
      }
      file.unsynced.clear();
    }
    return fails ? -1 : 0;
  }

  void SyncAll() {
    SyncPath(directory_);
    for (const auto& entry : std::filesystem::recursive_directory_iterator(directory_)) {
      SyncPath(entry.path());
    }
  }

  void CopySynced(const std::string& to) const {
    Synced synced;
    {
      std::lock_guard lock(mutex_);
      for (const auto& [number, file] : files_) synced.files[number] = file.synced;
      synced.names = names_;
    }
    struct stat properties = {};
    if (stat(directory_.c_str(), &properties) == 0) synced.Copy(properties.st_ino, to);
  }

 private:
  struct File {
    std::string synced;
    std::vector<std::function<void(std::string&)>> unsynced;
  };
  struct Entry {
    ino_t number = 0;
    bool directory = false;
  };

  using Names = std::map<std::string, Entry>;

  // What survives the machine.
  struct Synced {
    void Copy(ino_t number, const std::string& to) const {
      libc().mkdir(to.c_str(), 0700);
      const auto directory = names.find(number);
      if (directory == names.end()) return;
      for (const auto& [name, entry] : directory->second) {
        const std::string path = to + "/" + name;
        if (entry.directory) {
          Copy(entry.number, path);
        } else {
          const auto file = files.find(entry.number);
          std::ofstream(path, std::ios::binary) << (file == files.end() ? "" : file->second);
        }
      }
    }

    std::map<ino_t, std::string> files;
    std::map<ino_t, Names> names;
  };

  void SyncPath(const std::string& path) {
    const int fd = libc().open(path.c_str(), O_RDONLY);
    if (std::filesystem::is_directory(path)) {
      std::lock_guard lock(mutex_);
      names_[NumberOf(fd)] = List(fd);
    } else {
      std::stringstream content;
      content << std::ifstream(path, std::ios::binary).rdbuf();
      std::lock_guard lock(mutex_);
      files_[NumberOf(fd)] = {content.str(), {}};
    }
    close(fd);
  }

  // Nobody else gets the file's number while a name that was synced may mean it.
  void Hold(int fd) {
    const int held = libc().open(("/proc/self/fd/" + std::to_string(fd)).c_str(), O_PATH);
    std::lock_guard lock(mutex_);
    held_.push_back(held);
    files_.erase(NumberOf(fd));
  }

  void Written(int fd, off_t offset, std::string bytes) {
    std::lock_guard lock(mutex_);
    files_[NumberOf(fd)].unsynced.push_back(
        [from = static_cast<size_t>(offset), bytes = std::move(bytes)](std::string& content) {
          if (content.size() < from + bytes.size()) content.resize(from + bytes.size());
          content.replace(from, bytes.size(), bytes);
        });
  }

  void Truncated(int fd, off_t size) {
    std::lock_guard lock(mutex_);
    files_[NumberOf(fd)].unsynced.push_back(
        [size = static_cast<size_t>(size)](std::string& content) { content.resize(size); });
  }

  static Names List(int fd) {
    Names entries;
    DIR* const directory = opendir(("/proc/self/fd/" + std::to_string(fd)).c_str());
    while (const dirent* entry = libc().readdir(directory)) {
      const std::string name = entry->d_name;
      if (name != "." && name != "..") entries[name] = {entry->d_ino, entry->d_type == DT_DIR};
    }
    closedir(directory);
    return entries;
  }

  const std::string directory_;
  mutable std::mutex mutex_;
  Fault fault_;
  bool armed_ = false;
  int operations_ = 0;
  int failures_ = 0;
  std::vector<int> held_;
  std::map<ino_t, File> files_;
  std::map<ino_t, Names> names_;  // of directories, when they were synced
};

namespace {

std::atomic<FaultyDisk::State*> the_disk{nullptr};

// The disk that has the file; null: the C library alone.
template <typename File>
FaultyDisk::State* DiskOf(File file) {
  FaultyDisk::State* const disk = the_disk;
  return disk != nullptr && disk->Has(file) ? disk : nullptr;
}

int OpenAny(const char* path, int flags, va_list arguments) {
  const bool has_mode = (flags & O_CREAT) != 0 || (flags & O_TMPFILE) == O_TMPFILE;
  const mode_t mode = has_mode ? va_arg(arguments, mode_t) : 0;
  FaultyDisk::State* const disk = DiskOf<const char*>(path);
  return disk == nullptr ? libc().open(path, flags, mode) : disk->Open(path, flags, mode);
}

// Whether the disk lets this operation, which it need not know more of, fail.
template <typename File>
bool Fails(File file, Operation operation) {
  FaultyDisk::State* const disk = DiskOf(file);
  return disk != nullptr && disk->Fails(operation);
}

}  // namespace

FaultyDisk::FaultyDisk(const std::string& directory) : state_(std::make_unique<State>(directory)) {
  the_disk = state_.get();
}
FaultyDisk::~FaultyDisk() { the_disk = nullptr; }

void FaultyDisk::Arm(const Fault& fault) { state_->Arm(fault); }
void FaultyDisk::Heal() { state_->Heal(); }
int FaultyDisk::failures() const { return state_->failures(); }
void FaultyDisk::SyncAll() { state_->SyncAll(); }
void FaultyDisk::CopySynced(const std::string& to) const { state_->CopySynced(to); }

// Under names of their own here, as the system's headers declare the others in their own ways.
extern "C" {

int FaultyOpen(const char* path, int flags, ...) __asm__("open");
int FaultyOpen64(const char* path, int flags, ...) __asm__("open64");
ssize_t FaultyRead(int fd, void* data, size_t size) __asm__("read");
ssize_t FaultyPread64(int fd, void* data, size_t size, off_t offset) __asm__("pread64");
ssize_t FaultyWrite(int fd, const void* data, size_t size) __asm__("write");
ssize_t FaultyPwrite64(int fd, const void* data, size_t size, off_t offset) __asm__("pwrite64");
int FaultyFsync(int fd) __asm__("fsync");
int FaultyFdatasync(int fd) __asm__("fdatasync");
int FaultyFtruncate64(int fd, off_t size) __asm__("ftruncate64");
int FaultyFstat(int fd, struct stat* properties) __asm__("fstat");
int FaultyFstat64(int fd, struct stat* properties) __asm__("fstat64");
int FaultyRename(const char* from, const char* to) __asm__("rename");
int FaultyUnlink(const char* path) __asm__("unlink");
int FaultyMkdir(const char* path, mode_t mode) __asm__("mkdir");
int FaultyRmdir(const char* path) __asm__("rmdir");
dirent* FaultyReaddir(DIR* directory) __asm__("readdir");

int FaultyOpen(const char* path, int flags, ...) {
  va_list arguments;
  va_start(arguments, flags);
  const int fd = OpenAny(path, flags, arguments);
  va_end(arguments);
  return fd;
}

int FaultyOpen64(const char* path, int flags, ...) {
  va_list arguments;
  va_start(arguments, flags);
  const int fd = OpenAny(path, flags, arguments);
  va_end(arguments);
  return fd;
}

ssize_t FaultyRead(int fd, void* data, size_t size) {
  return Fails(fd, Operation::kRead) ? -1 : libc().read(fd, data, size);
}

ssize_t FaultyPread64(int fd, void* data, size_t size, off_t offset) {
  return Fails(fd, Operation::kRead) ? -1 : libc().pread(fd, data, size, offset);
}

ssize_t FaultyWrite(int fd, const void* data, size_t size) {
  FaultyDisk::State* const disk = DiskOf(fd);
  return disk == nullptr ? libc().write(fd, data, size) : disk->Write(fd, data, size, -1);
}

ssize_t FaultyPwrite64(int fd, const void* data, size_t size, off_t offset) {
  FaultyDisk::State* const disk = DiskOf(fd);
  return disk == nullptr ? libc().pwrite(fd, data, size, offset)
                         : disk->Write(fd, data, size, offset);
}

int FaultyFsync(int fd) {
  FaultyDisk::State* const disk = DiskOf(fd);
  return disk == nullptr ? libc().fsync(fd) : disk->Sync(fd);
}

int FaultyFdatasync(int fd) {
  FaultyDisk::State* const disk = DiskOf(fd);
  return disk == nullptr ? libc().fdatasync(fd) : disk->Sync(fd);
}

int FaultyFtruncate64(int fd, off_t size) {
  FaultyDisk::State* const disk = DiskOf(fd);
  return disk == nullptr ? libc().ftruncate(fd, size) : disk->Truncate(fd, size);
}

int FaultyFstat(int fd, struct stat* properties) {
  return Fails(fd, Operation::kRead) ? -1 : libc().fstat(fd, properties);
}

int FaultyFstat64(int fd, struct stat* properties) {
  return Fails(fd, Operation::kRead) ? -1 : libc().fstat(fd, properties);
}

int FaultyRename(const char* from, const char* to) {
  return Fails<const char*>(to, Operation::kGrow) ? -1 : libc().rename(from, to);
}

int FaultyUnlink(const char* path) {
  return Fails<const char*>(path, Operation::kChange) ? -1 : libc().unlink(path);
}

int FaultyMkdir(const char* path, mode_t mode) {
  const bool makes = ::access(path, F_OK) != 0;
  return makes && Fails<const char*>(path, Operation::kGrow) ? -1 : libc().mkdir(path, mode);
}

int FaultyRmdir(const char* path) {
  return Fails<const char*>(path, Operation::kChange) ? -1 : libc().rmdir(path);
}

dirent* FaultyReaddir(DIR* directory) {
  return Fails(dirfd(directory), Operation::kRead) ? nullptr : libc().readdir(directory);
}

}  // extern "C"

std::string MakeFaultyDiskFolder() {
  constexpr char kMemory[] = "/dev/shm";
  constexpr uintmax_t kRoom = 256 << 20;
  std::error_code error;
  const auto space = std::filesystem::space(kMemory, error);
  const bool fits = !error && space.available >= kRoom && ::access(kMemory, W_OK) == 0;
  std::string pattern = (fits ? std::string(kMemory) : ::testing::TempDir()) + "/faultsXXXXXX";
  return std::filesystem::canonical(mkdtemp(pattern.data()));
}

}  // namespace nni_compression::testing
