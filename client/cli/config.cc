#include "client/cli/config.h"

#include <cerrno>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "client/cli/strict_json.h"

namespace nni_compression::cli {
namespace {

constexpr std::streamsize kMaxBytes = 4 << 20;
constexpr int kMaxConfigDepth = 16;
constexpr char kExample[] = R"([{"sparsity": 0.8, "op_types": ["default"]}])";

}  // namespace

absl::StatusOr<std::string> CheckConfigList(absl::string_view text) {
  const auto parsed = ParseStrictJson(text, kMaxConfigDepth);
  if (!parsed.ok()) return parsed.status();
  const nlohmann::json& json = *parsed;
  if (!json.is_array()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the config_list is not a list of rules, such as ", kExample));
  }
  for (size_t i = 0; i < json.size(); ++i) {
    if (!json[i].is_object()) {
      return absl::InvalidArgumentError(
          absl::StrCat("config_list[", i, "] is ", json[i].type_name(), "; a rule is an object"));
    }
  }
  return json.dump();
}

absl::StatusOr<std::string> ReadConfigList(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::ErrnoToStatus(errno, absl::StrCat("cannot open ", path));
  std::string text(kMaxBytes + 1, '\0');
  file.read(text.data(), kMaxBytes + 1);
  if (file.bad() || (file.fail() && !file.eof())) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot read ", path));
  }
  text.resize(file.gcount());
  if (file.gcount() > kMaxBytes) {
    return absl::InvalidArgumentError(absl::StrCat(path, " is larger than ", kMaxBytes, " bytes"));
  }
  auto checked = CheckConfigList(text);
  if (!checked.ok()) {
    return absl::Status(checked.status().code(),
                        absl::StrCat(path, ": ", checked.status().message()));
  }
  return checked;
}

}  // namespace nni_compression::cli
