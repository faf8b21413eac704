// Where exported files go.
#ifndef NNI_COMPRESSION_FILES_H_
#define NNI_COMPRESSION_FILES_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace nni_compression {

// Receives the files of an export, one after the other. Called in the thread of Session::Export; an
// error that it returns is that of the export.
class FileSink {
 public:
  virtual ~FileSink() = default;

  // A file begins. The name is plain: no directory, no "..", at most 255 bytes.
  virtual absl::Status Begin(const std::string& name, int64_t byte_length) = 0;
  // Something that users of the next file need to know, such as software that cannot load it.
  virtual void Warn(const std::string& warning) { static_cast<void>(warning); }
  virtual absl::Status Write(absl::Span<const uint8_t> bytes) = 0;
  // The file is complete and has its announced length.
  virtual absl::Status End() = 0;

  // The export is restarted after a broken connection: all earlier files are void.
  virtual absl::Status Restart() = 0;
};

// What happens to existing files with the names of new ones.
enum class ExistingFiles {
  kReplace,  // they are replaced
  kKeep,     // they stay, and the export fails with ALREADY_EXISTS
};

// Writes the files into a directory, under temporary names until Commit renames them: readers see
// whole files or none. A config.json that was not written by an export always stays, and the export
// fails with ALREADY_EXISTS: models have files of their own with this name. Thread-compatible.
class DirectorySink : public FileSink {
 public:
  // Creates the directory if it is missing; its parent must exist.
  static absl::StatusOr<DirectorySink> Create(absl::string_view directory,
                                              ExistingFiles existing = ExistingFiles::kReplace);

  // Removes what was not committed.
  ~DirectorySink() override;
  DirectorySink(DirectorySink&& other) noexcept;
  DirectorySink& operator=(DirectorySink&&) = delete;

  absl::Status Begin(const std::string& name, int64_t byte_length) override;
  void Warn(const std::string& warning) override { warnings_.push_back(warning); }
  absl::Status Write(absl::Span<const uint8_t> bytes) override;
  absl::Status End() override;
  absl::Status Restart() override;

  const std::vector<std::string>& warnings() const { return warnings_; }

  // Renames all files to their final names and returns their paths.
  absl::StatusOr<std::vector<std::string>> Commit();

 private:
  struct File {
    std::string path;
    std::string temporary;
  };

  DirectorySink(std::string directory, ExistingFiles existing)
      : directory_(std::move(directory)), existing_(existing) {}
  // OK when `path` does not exist or may be replaced.
  absl::Status CheckFree(const std::string& path) const;
  void Discard();

  std::string directory_;
  ExistingFiles existing_;
  std::vector<std::string> warnings_;
  std::vector<File> files_;
  int descriptor_ = -1;  // of the last of files_, while it is written
};

}  // namespace nni_compression

#endif  // NNI_COMPRESSION_FILES_H_
