#include "server/platform/shm_paths.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "absl/strings/str_cat.h"

namespace nni_compression::server {

std::vector<std::string> ShmPathsOfPort(int port) {
  const uid_t user = geteuid();
  std::vector<std::string> paths;
  const auto add = [&](absl::string_view folder) {
    const std::string path = absl::StrCat(folder, "/", port, ".shm");
    if (paths.empty() || paths.back() != path) paths.push_back(path);
  };
  const char* const runtime = std::getenv("XDG_RUNTIME_DIR");
  if (runtime != nullptr && *runtime == '/') add(absl::StrCat(runtime, "/nni-compression"));
  add(absl::StrCat("/run/user/", user, "/nni-compression"));
  add(absl::StrCat("/tmp/nni-compression-", user));
  return paths;
}

std::string ShmPathOfSocket(absl::string_view path) { return absl::StrCat(path, ".shm"); }

absl::Status MakePrivateFolderOf(const std::string& path) {
  const std::string folder = std::filesystem::path(path).parent_path();
  struct stat found;
  // Not through a link: another user may have put one into /tmp.
  if ((mkdir(folder.c_str(), 0700) != 0 && errno != EEXIST) || lstat(folder.c_str(), &found) != 0) {
    return absl::UnavailableError(
        absl::StrCat("cannot create the folder ", folder, ": ", std::strerror(errno)));
  }
  if (!S_ISDIR(found.st_mode) || found.st_uid != geteuid() || (found.st_mode & 077) != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat(folder, " is not a folder of user ", geteuid(), " alone (mode 0700)"));
  }
  return absl::OkStatus();
}

}  // namespace nni_compression::server
