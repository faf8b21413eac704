#include "compression/extensions/loader.h"

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compression/algorithms/check_info.h"
#include "compression/messages/suggest.h"

namespace nni_compression::compression {

namespace fs = std::filesystem;

absl::StatusOr<std::vector<std::string>> FilesWith(const std::string& folder,
                                                   absl::string_view extension) {
  std::error_code error;
  std::vector<std::string> files;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    if (it->is_regular_file(error) && it->path().extension() == std::string(extension)) {
      files.push_back(it->path().string());
    }
  }
  if (error) {
    return absl::NotFoundError(
        absl::StrCat("cannot read the folder ", Quoted(folder), ": ", error.message()));
  }
  std::sort(files.begin(), files.end());
  return files;
}

absl::Status AddFrom(const std::string& file, AlgorithmInfo info, Registry* registry) {
  info.source = fs::path(file).filename().string();
  absl::Status status = CheckInfo(info);
  if (status.ok()) status = registry->Add(info);
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat(info.source, ": ", status.message()));
}

}  // namespace nni_compression::compression
