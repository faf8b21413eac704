#include "server/access/bytes.h"

#include <limits>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace nni_compression::access {

absl::StatusOr<int64_t> ParseBytes(absl::string_view text) {
  absl::string_view digits = absl::StripAsciiWhitespace(text);
  int64_t unit = 1;
  for (const auto& [suffix, bytes] : {std::pair<absl::string_view, int64_t>("K", int64_t{1} << 10),
                                      {"M", int64_t{1} << 20},
                                      {"G", int64_t{1} << 30}}) {
    if (absl::ConsumeSuffix(&digits, suffix)) {
      unit = bytes;
      break;
    }
  }
  int64_t number = 0;
  if (!absl::SimpleAtoi(digits, &number) || number < 0 ||
      number > std::numeric_limits<int64_t>::max() / unit) {
    return absl::InvalidArgumentError(absl::StrCat(
        "'", text, "' is not a number of bytes; it must be like 1000000, 512K, 64M or 4G"));
  }
  return number * unit;
}

}  // namespace nni_compression::access
