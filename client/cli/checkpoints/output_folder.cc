#include "client/cli/checkpoints/output_folder.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/cli/checkpoints/file_error.h"
#include "client/cli/checkpoints/model_files.h"
#include "client/cli/checkpoints/safetensors.h"
#include "client/cpp/connection.h"

namespace nni_compression::cli {
namespace {

namespace fs = std::filesystem;

constexpr char kPartial[] = ".partial";
constexpr size_t kCopyBytes = size_t{1} << 20;

// The folder to which a commit moves the old model.
std::string OldOf(const std::string& staging) { return absl::StrCat(staging, kPartial); }

bool IsPartial(const std::string& name) { return name[0] == '.' && absl::EndsWith(name, kPartial); }

enum class Depth { kTop, kAll };

// What is in a folder, except what interrupted runs have left; the names of folders end with a
// slash.
absl::StatusOr<std::set<std::string>> EntriesOf(const std::string& folder, Depth depth) {
  std::set<std::string> names;
  std::error_code error;
  fs::recursive_directory_iterator entry(folder, error);
  for (; !error && entry != fs::end(entry); entry.increment(error)) {
    const std::string name = entry->path().lexically_relative(folder).string();
    const bool partial = entry.depth() == 0 && IsPartial(name);
    if (partial || depth == Depth::kTop) entry.disable_recursion_pending();
    if (partial) continue;
    const bool is_folder = entry->symlink_status(error).type() == fs::file_type::directory;
    if (error) break;
    names.insert(is_folder ? name + "/" : name);
  }
  if (error) return FileError("list", folder, error.value());
  return names;
}

// The old model that an interrupted commit has left in a folder; empty if there is none.
std::string LeftOldModel(const std::string& folder) {
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename().string();
    if (IsPartial(name) && absl::EndsWith(name, OldOf(kPartial))) return entry.path().string();
  }
  return "";
}

// "a" and "b" of "a", "b/" and "b/c".
std::set<std::string> TopOf(const std::set<std::string>& names) {
  std::set<std::string> top;
  for (const std::string& name : names) top.insert(name.substr(0, name.find('/')));
  return top;
}

// The weights of an earlier result and their index; empty when the folder has other ones.
std::set<std::string> WeightsOfResult(const std::string& folder,
                                      const std::set<std::string>& entries) {
  std::set<std::string> weights;
  for (const std::string& name : entries) {
    if (absl::EndsWith(name, absl::StrCat(kSafetensorsSuffix, kIndexSuffix))) weights.insert(name);
    if (!absl::EndsWith(name, kSafetensorsSuffix)) continue;
    const auto file = SafetensorsFile::Open(absl::StrCat(folder, "/", name));
    if (!file.ok() || file->header().metadata.count(kResultMetadata) == 0) return {};
    weights.insert(name);
  }
  return weights;
}

// How early a loader needs a file: without the last ones a model is not complete.
int Priority(const std::string& name) {
  if (name == kConfigFile) return 2;
  return absl::EndsWith(name, kIndexSuffix) ? 1 : 0;
}

// Its owner may always fill it.
bool MakeFolder(const std::string& path, mode_t mode) {
  return mkdir(path.c_str(), mode | S_IRWXU) == 0;
}

bool Rename(const std::string& from, const std::string& to, unsigned flags) {
  return renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), flags) == 0 ||
         // Some file systems have no flags.
         (errno == EINVAL && rename(from.c_str(), to.c_str()) == 0);
}

}  // namespace

OutputFile::OutputFile(std::string path, int descriptor)
    : path_(std::move(path)), descriptor_(descriptor) {}

OutputFile::~OutputFile() {
  if (descriptor_ >= 0) close(descriptor_);
}

OutputFile::OutputFile(OutputFile&& other) noexcept
    : path_(std::move(other.path_)), descriptor_(std::exchange(other.descriptor_, -1)) {}

OutputFile& OutputFile::operator=(OutputFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(descriptor_, other.descriptor_);
  return *this;
}

absl::Status OutputFile::WriteAt(int64_t offset, absl::Span<const uint8_t> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = pwrite(descriptor_, bytes.data(), bytes.size(), offset);
    if (written < 0) {
      if (errno == EINTR) continue;
      return FileError("write", path_);
    }
    offset += written;
    bytes.remove_prefix(written);
  }
  return absl::OkStatus();
}

absl::Status OutputFile::Finish() {
  const int descriptor = std::exchange(descriptor_, -1);
  const bool synced = fsync(descriptor) == 0;
  absl::Status status = synced ? absl::OkStatus() : FileError("write", path_);
  if (close(descriptor) != 0 && status.ok()) status = FileError("close", path_);
  return status;
}

absl::Status OutputFolder::Check(const std::string& path, ExistingFiles existing) {
  struct stat status;
  if (stat(path.c_str(), &status) != 0 && errno == ENOENT) return absl::OkStatus();
  const auto entries = EntriesOf(path, Depth::kTop);
  if (!entries.ok()) return entries.status();
  if (entries->empty()) return absl::OkStatus();
  const std::string found = absl::StrCat(path, " has files in it, such as ", *entries->begin());
  if (existing == ExistingFiles::kKeep) return absl::AlreadyExistsError(found);
  if (!WeightsOfResult(path, *entries).empty()) return absl::OkStatus();
  const std::string old = LeftOldModel(path);
  return absl::AlreadyExistsError(absl::StrCat(
      found, ", and is not an earlier result; ",
      old.empty() ? "" : absl::StrCat("an interrupted run may have left one in ", old, "; "),
      "choose another directory"));
}

absl::StatusOr<OutputFolder> OutputFolder::Create(const std::string& path, ExistingFiles existing,
                                                  Permissions permissions) {
  if (absl::Status checked = Check(path, existing); !checked.ok()) return checked;
  const bool created = MakeFolder(path, permissions.folder);
  if (!created && errno != EEXIST) return FileError("make directory", path);
  OutputFolder folder(path, created, permissions);
  const auto entries = EntriesOf(path, Depth::kTop);
  if (!entries.ok()) return entries.status();
  if (existing == ExistingFiles::kReplace) folder.replaced_ = WeightsOfResult(path, *entries);
  if (absl::Status made = folder.MakeStaging(); !made.ok()) return made;
  return folder;
}

OutputFolder::~OutputFolder() { Discard(); }

OutputFolder::OutputFolder(OutputFolder&& other) noexcept
    : path_(std::move(other.path_)),
      created_(std::exchange(other.created_, false)),
      permissions_(other.permissions_),
      staging_(std::exchange(other.staging_, "")),
      replaced_(std::move(other.replaced_)),
      files_(std::move(other.files_)) {}

absl::Status OutputFolder::MakeStaging() {
  const std::string staging = absl::StrCat(path_, "/.", internal::RandomId(), kPartial);
  if (mkdir(staging.c_str(), 0777) != 0) return FileError("make directory", staging);
  staging_ = staging;
  return absl::OkStatus();
}

absl::StatusOr<OutputFile> OutputFolder::Add(const std::string& name) {
  return Add(name, permissions_.files);
}

absl::StatusOr<OutputFile> OutputFolder::Add(const std::string& name, std::optional<mode_t> mode) {
  const std::string path = absl::StrCat(staging_, "/", name);
  std::error_code error;
  fs::create_directories(fs::path(path).parent_path(), error);
  if (error) return FileError("make the folder of", path, error.value());
  const int descriptor =
      open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode.value_or(0666));
  if (descriptor < 0) return FileError("create", path);
  // Some file systems have no permissions that could be set.
  if (mode) static_cast<void>(fchmod(descriptor, *mode));
  files_.insert(name);
  return OutputFile(path, descriptor);
}

absl::Status OutputFolder::AddText(const std::string& name, absl::string_view text) {
  auto file = Add(name);
  if (!file.ok()) return file.status();
  absl::Status written =
      file->WriteAt(0, {reinterpret_cast<const uint8_t*>(text.data()), text.size()});
  return written.ok() ? file->Finish() : written;
}

absl::Status OutputFolder::Copy(const std::string& folder, const std::string& name) {
  const std::string from = absl::StrCat(folder, "/", name);
  const int source = open(from.c_str(), O_RDONLY | O_CLOEXEC);
  if (source < 0) return FileError("open", from);
  const auto closer = absl::MakeCleanup([source] { close(source); });
  for (size_t slash = name.find('/'); slash != std::string::npos;
       slash = name.find('/', slash + 1)) {
    const std::string parent = absl::StrCat("/", name.substr(0, slash));
    const mode_t mode = ModeOf(folder + parent).value_or(0777);
    if (!MakeFolder(staging_ + parent, mode) && errno != EEXIST) {
      return FileError("make directory", staging_ + parent);
    }
  }
  auto file = Add(name, ModeOf(from));
  if (!file.ok()) return file.status();
  std::vector<uint8_t> buffer(kCopyBytes);
  for (int64_t offset = 0;;) {
    const ssize_t got = read(source, buffer.data(), buffer.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return FileError("read", from);
    if (got == 0) return file->Finish();
    absl::Status written = file->WriteAt(offset, absl::MakeConstSpan(buffer).first(got));
    if (!written.ok()) return written;
    offset += got;
  }
}

absl::Status OutputFolder::Clear() {
  std::error_code error;
  fs::remove_all(staging_, error);
  if (error) return FileError("remove", staging_, error.value());
  files_.clear();
  return MakeStaging();
}

std::set<std::string> OutputFolder::Replaceable() const {
  std::set<std::string> names = replaced_;
  for (const std::string& name : files_) {
    names.insert(name);
    for (size_t slash = name.find('/'); slash != std::string::npos;
         slash = name.find('/', slash + 1)) {
      names.insert(name.substr(0, slash + 1));
    }
  }
  return names;
}

absl::Status OutputFolder::Commit() {
  const bool replaces = !replaced_.empty();
  const auto before = EntriesOf(path_, replaces ? Depth::kAll : Depth::kTop);
  if (!before.ok()) return before.status();
  const std::set<std::string> replaceable = replaces ? Replaceable() : std::set<std::string>();
  for (const std::string& name : *before) {
    if (replaceable.count(name) != 0) continue;
    return absl::AlreadyExistsError(absl::StrCat(
        PathOf(name), " exists, which the new result lacks; choose another directory"));
  }
  const std::string old = OldOf(staging_);
  if (!before->empty() && mkdir(old.c_str(), 0777) != 0) return FileError("make directory", old);

  // The old model goes before anything of the new one is there.
  std::vector<std::pair<std::string, std::string>> moves;
  const auto move = [&](const std::set<std::string>& names, int priority, const std::string& from,
                        const std::string& to) {
    for (const std::string& name : names) {
      if (Priority(name) != priority) continue;
      moves.emplace_back(absl::StrCat(from, "/", name), absl::StrCat(to, "/", name));
    }
  };
  for (const int priority : {2, 1, 0}) move(TopOf(*before), priority, path_, old);
  for (const int priority : {0, 1, 2}) move(TopOf(files_), priority, staging_, path_);
  absl::Status status;
  size_t done = 0;
  while (done < moves.size() && Rename(moves[done].first, moves[done].second, RENAME_NOREPLACE)) {
    ++done;
  }
  if (done < moves.size()) {
    status = FileError("write", moves[done].second);
    while (done-- > 0) Rename(moves[done].second, moves[done].first, RENAME_NOREPLACE);
  } else {
    created_ = false;
  }
  std::error_code error;
  if (status.ok()) {
    // Only what was checked, and the content of a folder before it.
    for (auto name = before->rbegin(); name != before->rend(); ++name) {
      fs::remove(absl::StrCat(old, "/", *name), error);
    }
  }
  if (!before->empty()) fs::remove(old, error);
  return status;
}

void OutputFolder::Discard() {
  std::error_code error;
  if (!staging_.empty()) fs::remove_all(staging_, error);
  if (created_) fs::remove(path_, error);
}

}  // namespace nni_compression::cli
