// A folder with a model, which appears when it is complete.
#ifndef NNI_COMPRESSION_CLIENT_CLI_CHECKPOINTS_OUTPUT_FOLDER_H_
#define NNI_COMPRESSION_CLIENT_CLI_CHECKPOINTS_OUTPUT_FOLDER_H_

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "client/cli/checkpoints/model_files.h"
#include "nni_compression/files.h"

namespace nni_compression::cli {

// Metadata of the weights of every model that was written here, by which an earlier result is told
// from a model that must not be replaced.
inline constexpr char kResultMetadata[] = "nni_compression.format";

// A file that is written. Thread-compatible.
class OutputFile {
 public:
  OutputFile() = default;
  OutputFile(std::string path, int descriptor);
  ~OutputFile();
  OutputFile(OutputFile&& other) noexcept;
  OutputFile& operator=(OutputFile&& other) noexcept;

  absl::Status WriteAt(int64_t offset, absl::Span<const uint8_t> bytes);
  // The bytes are on disk then.
  absl::Status Finish();

 private:
  std::string path_;
  int descriptor_ = -1;
};

// Files are written into a hidden folder in the folder, and moved to their places at the end, those
// that a loader reads first as the last. What is interrupted leaves a hidden folder .ID.partial,
// which the next one ignores. Thread-compatible.
class OutputFolder {
 public:
  // ALREADY_EXISTS when there is anything in the folder, except, for kReplace, an earlier result.
  static absl::Status Check(const std::string& path, ExistingFiles existing);

  // Checks the folder, and makes it if it is missing; its parent must exist. `permissions` are
  // those of a folder that is made, and of files that are added.
  static absl::StatusOr<OutputFolder> Create(const std::string& path, ExistingFiles existing,
                                             Permissions permissions = {});

  // Removes what was not committed.
  ~OutputFolder();
  OutputFolder(OutputFolder&& other) noexcept;
  OutputFolder& operator=(OutputFolder&&) = delete;

  // `name` may have folders: "1_Pooling/config.json".
  absl::StatusOr<OutputFile> Add(const std::string& name);
  absl::Status AddText(const std::string& name, absl::string_view text);
  // A file of another folder, with its permissions and those of the folders in its name.
  absl::Status Copy(const std::string& folder, const std::string& name);
  bool Has(const std::string& name) const { return files_.count(name) != 0; }

  // Removes all files that were added.
  absl::Status Clear();

  // ALREADY_EXISTS, with its name, when there is a file, folder or link at any depth of the folder
  // that this result does not replace. An error leaves the folder as it was.
  absl::Status Commit();

  std::string PathOf(const std::string& name) const { return path_ + "/" + name; }

 private:
  OutputFolder(std::string path, bool created, Permissions permissions)
      : path_(std::move(path)), created_(created), permissions_(permissions) {}
  absl::Status MakeStaging();
  absl::StatusOr<OutputFile> Add(const std::string& name, std::optional<mode_t> mode);
  // What may be in the folder before: the earlier weights, and files and folders of the new result.
  std::set<std::string> Replaceable() const;
  void Discard();

  std::string path_;
  bool created_;  // by this object
  Permissions permissions_;
  std::string staging_;             // empty: there is none
  std::set<std::string> replaced_;  // entries of an earlier result
  std::set<std::string> files_;
};

}  // namespace nni_compression::cli

#endif  // NNI_COMPRESSION_CLIENT_CLI_CHECKPOINTS_OUTPUT_FOLDER_H_
