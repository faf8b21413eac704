// A progress bar.
#ifndef NNI_COMPRESSION_CLIENT_CLI_PROGRESS_H_
#define NNI_COMPRESSION_CLIENT_CLI_PROGRESS_H_

#include <cstdint>
#include <cstdio>
#include <string>

#include "absl/time/time.h"

namespace nni_compression::cli {

// One line: "masks  [#####     ]  52 %  93.0 MiB of 180.0 MiB". Pure, for tests.
std::string ProgressLine(const std::string& label, int64_t done_bytes, int64_t total_bytes);

// Redraws a line on a terminal a few times per second; does nothing when `stream` is null or not a
// terminal.
// Thread-compatible.
class ProgressBar {
 public:
  ProgressBar(std::FILE* stream, std::string label);
  ~ProgressBar();  // removes the line
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  void Update(int64_t done_bytes, int64_t total_bytes);

 private:
  std::FILE* const stream_;  // null: not a terminal
  const std::string label_;
  absl::Time next_ = absl::InfinitePast();
};

}  // namespace nni_compression::cli

#endif  // NNI_COMPRESSION_CLIENT_CLI_PROGRESS_H_
