// Text for terminals.
#ifndef NNI_COMPRESSION_CLIENT_CLI_FORMAT_H_
#define NNI_COMPRESSION_CLIENT_CLI_FORMAT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace nni_compression::cli {

// Columns of text, as wide as their widest cell, without trailing blanks. Thread-compatible.
class Table {
 public:
  explicit Table(std::vector<std::string> headings);
  void Add(std::vector<std::string> cells);  // as many as headings
  std::string ToString() const;

 private:
  std::vector<std::vector<std::string>> rows_;
};

// Control characters, which could steer a terminal, as \xNN.
std::string Printable(absl::string_view text);

std::string FormatBytes(int64_t bytes);          // "512 B", "1.5 KiB", "12.0 MiB"
std::string FormatShare(double share);           // "80.00 %"
std::string FormatSeconds(absl::Duration time);  // "0.4 s", "12 s", "3 min 20 s", "2 h 5 min"
std::string FormatShape(const std::vector<int64_t>& shape);  // "20x1x5x5"

}  // namespace nni_compression::cli

#endif  // NNI_COMPRESSION_CLIENT_CLI_FORMAT_H_
