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

// Takes the files of an export, one after the other. Called in the thread of Session::Export; an
// error that it returns ends the export with that error.
class FileSink {
 public:
  virtual ~FileSink() = default;

  // A file begins. The name is plain: no directory, no "..", at most 255 bytes.
  virtual absl::Status Begin(const std::string& name, int64_t byte_length) = 0;
  // Something that readers of the file that begins next have to know, such as that software that
  // is there does not load it.
  virtual void Warn(const std::string& warning) { static_cast<void>(warning); }
  virtual absl::Status Write(absl::Span<const uint8_t> bytes) = 0;
  // All bytes of the file have arrived, and they are the ones announced.
  virtual absl::Status End() = 0;

  // The export begins again after a broken connection: whatever came before is void.
  virtual absl::Status Restart() = 0;
};

// What becomes of files that have the names of new ones.
enum class ExistingFiles {
  kReplace,  // new ones take their places
  kKeep,     // they stay, and the export ends with ALREADY_EXISTS
};

// Writes the files into a directory, under temporary names until Commit renames them: readers see
// whole files or none. A config.json that is not an earlier export's stays in any case, and ends
// the export with ALREADY_EXISTS: models have files of their own with this name. Thread-compatible.
class DirectorySink : public FileSink {
 public:
  // Makes the directory when it does not exist (its parent must).
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

  // Gives all files their names, in place of older ones, and returns their paths.
  absl::StatusOr<std::vector<std::string>> Commit();

 private:
  struct File {
    std::string path;
    std::string temporary;
  };

  DirectorySink(std::string directory, ExistingFiles existing)
      : directory_(std::move(directory)), existing_(existing) {}
  // OK where nothing is at `path`, or what may be replaced.
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
