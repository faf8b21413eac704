#include "compression/messages/names.h"

#include "absl/strings/str_cat.h"
#include "compression/messages/suggest.h"

namespace nni_compression::compression {
namespace {

bool IsControl(absl::string_view sequence) {
  const auto first = static_cast<uint8_t>(sequence[0]);
  if (sequence.size() == 1) return first < 0x20 || first == 0x7f;
  return first == 0xc2 && static_cast<uint8_t>(sequence[1]) < 0xa0;
}

}  // namespace

size_t Utf8SequenceLength(absl::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return 1;
  const size_t length = lead >= 0xc2 && lead < 0xe0   ? 2
                        : lead >= 0xe0 && lead < 0xf0 ? 3
                        : lead >= 0xf0 && lead < 0xf5 ? 4
                                                      : 0;
  if (length == 0 || text.size() < length) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return 0;
  }
  const uint8_t second = byte(1);
  const bool overlong = (lead == 0xe0 && second < 0xa0) || (lead == 0xf0 && second < 0x90);
  const bool surrogate = lead == 0xed && second >= 0xa0;
  const bool beyond = lead == 0xf4 && second >= 0x90;
  return overlong || surrogate || beyond ? 0 : length;
}

absl::Status CheckName(absl::string_view name, size_t max_bytes, absl::string_view path) {
  if (name.empty() || name.size() > max_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " has ", name.size(), " bytes; it must have 1 to ", max_bytes));
  }
  for (size_t i = 0; i < name.size();) {
    const size_t length = Utf8SequenceLength(name.substr(i));
    if (length == 0 || IsControl(name.substr(i, length))) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, " is ", Quoted(name), ", whose byte ", i,
                       length == 0 ? " is not valid UTF-8" : " is a control character",
                       "; it must be UTF-8 without control characters"));
    }
    i += length;
  }
  return absl::OkStatus();
}

}  // namespace nni_compression::compression
