#include "server/disk/layout.h"

#include <sys/stat.h>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace nni_compression::server::layout {
namespace {

bool Exists(const std::string& path) {
  struct stat file = {};
  return lstat(path.c_str(), &file) == 0;
}

}  // namespace

std::string PathIn(const std::string& directory, absl::string_view name) {
  return absl::StrCat(directory, "/", name);
}

std::string RecordPath(absl::string_view digest) {
  const std::string name = absl::BytesToHexString(digest);
  return absl::StrCat(name.substr(0, 2), "/", name.substr(2));
}

bool HasUnfinishedCopy(const std::string& directory) {
  return Exists(PathIn(directory, kUnfinishedCatalogue)) && !Exists(PathIn(directory, kCatalogue));
}

bool IsAt(int directory, const std::string& path) {
  struct stat open = {};
  struct stat named = {};
  return fstat(directory, &open) == 0 && stat(path.c_str(), &named) == 0 &&
         open.st_dev == named.st_dev && open.st_ino == named.st_ino;
}

std::string PartName(int part) {
  switch (part) {
    case kBinding:
      return "the binding";
    case kGlobal:
      return "the global record";
    case kReport:
      return "the report";
    default:
      return absl::StrCat("the record of layer ", part);
  }
}

}  // namespace nni_compression::server::layout
