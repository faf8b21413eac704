#include "client/cli/strict_json.h"

#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"

namespace nni_compression::cli {
namespace {

using Json = nlohmann::json;

// "[json.exception.parse_error.101] parse error at line 1, column 2: ..." without the brackets.
std::string Explain(const Json::exception& error) {
  const std::string what = error.what();
  const size_t end = what.find("] ");
  return end == std::string::npos ? what : what.substr(end + 2);
}

}  // namespace

absl::StatusOr<Json> ParseStrictJson(absl::string_view text, int max_depth) {
  std::vector<std::set<std::string>> names;  // of the enclosing objects
  absl::Status status;
  const auto check = [&](int depth, Json::parse_event_t event, Json& value) {
    if (!status.ok()) return false;
    if (depth > max_depth) {
      status = absl::InvalidArgumentError(
          absl::StrCat("JSON is nested deeper than ", max_depth, " levels"));
    } else if (event == Json::parse_event_t::object_start) {
      names.emplace_back();
    } else if (event == Json::parse_event_t::object_end) {
      names.pop_back();
    } else if (event == Json::parse_event_t::key) {
      const auto& name = value.get_ref<const std::string&>();
      if (!names.back().insert(name).second) {
        status = absl::InvalidArgumentError(absl::StrCat("duplicate name ", name));
      }
    }
    return status.ok();
  };
  try {
    Json json = Json::parse(text.begin(), text.end(), check);
    if (!status.ok()) return status;
    return json;
  } catch (const Json::exception& error) {  // also for numbers that overflow
    return status.ok() ? absl::InvalidArgumentError(Explain(error)) : status;
  }
}

}  // namespace nni_compression::cli
