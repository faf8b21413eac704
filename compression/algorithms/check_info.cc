#include "compression/algorithms/check_info.h"

#include <set>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "compression/messages/suggest.h"

namespace nni_compression::compression {
namespace {

constexpr size_t kMaxNameBytes = 64;

bool IsName(absl::string_view name) {
  if (name.empty() || name.size() > kMaxNameBytes || !absl::ascii_islower(name[0])) return false;
  for (const char c : name) {
    if (!absl::ascii_islower(c) && !absl::ascii_isdigit(c) && c != '_') return false;
  }
  return true;
}

absl::Status BadName(absl::string_view what, absl::string_view name) {
  return absl::InvalidArgumentError(
      absl::StrCat(what, " is ", Quoted(name), "; it must be 1 to ", kMaxNameBytes,
                   " lower-case letters, digits and underscores, beginning with a letter"));
}

}  // namespace

absl::Status CheckInfo(const AlgorithmInfo& info) {
  if (!IsName(info.name)) return BadName("the name of an algorithm", info.name);
  const auto bad = [&](const auto&... parts) {
    return absl::InvalidArgumentError(absl::StrCat("algorithm ", info.name, ": ", parts...));
  };
  if (info.kind != AlgorithmKind::kPruner && info.kind != AlgorithmKind::kQuantizer) {
    return bad("its kind is ", static_cast<int>(info.kind), "; it must be pruner or quantizer");
  }
  if (!info.create) return bad("it has no function `create`");
  std::set<std::string> names(CommonKeys().begin(), CommonKeys().end());
  nlohmann::json defaults = nlohmann::json::object();
  for (const OptionSpec& spec : info.options) {
    if (!IsName(spec.name)) return BadName(absl::StrCat(info.name, ": an option"), spec.name);
    for (const std::string& name : spec.aliases) {
      if (!names.insert(name).second) return bad("duplicate option ", Quoted(name));
    }
    if (!names.insert(spec.name).second) return bad("duplicate option ", Quoted(spec.name));
    if (!spec.default_value.is_null()) defaults[spec.name] = spec.default_value;
  }
  if (auto status = Options::Check(info.options, {}, defaults, "its default"); !status.ok()) {
    return bad(status.message());
  }
  for (const OptionSpec& spec : info.options) {
    for (const auto& [choice, preset] : spec.presets) {
      const std::string path = absl::StrCat("the preset of ", spec.name, " ", Quoted(choice));
      if (auto s = Options::Check(info.options, {}, preset, path); !s.ok()) return bad(s.message());
    }
  }
  const auto example = Options::Parse(info.options, {}, info.example, "its example");
  return example.ok() ? absl::OkStatus() : bad(example.status().message());
}

}  // namespace nni_compression::compression
