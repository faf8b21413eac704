#include "client/cli/command_line/output.h"

#include <cstdio>

#include "absl/strings/str_cat.h"
#include "client/cli/report.h"

namespace nni_compression::cli {

int Output::Print(const std::string& text, const std::string& json) const {
  std::fputs(json_ ? absl::StrCat(json, "\n").c_str() : text.c_str(), stdout);
  return std::fflush(stdout) == 0 ? kOk : kFailed;
}

int Output::Fail(const absl::Status& status) const {
  std::fprintf(stderr, "%s\n", ErrorLine(status).c_str());
  return kFailed;
}

int Output::BadUsage(const std::string& message, const std::string& command) const {
  Fail(absl::InvalidArgumentError(message));
  if (!json_) {
    std::fprintf(stderr, "`compressionctl %s%s--help` shows how it is used\n", command.c_str(),
                 command.empty() ? "" : " ");
  }
  return kBadUsage;
}

std::string Output::ErrorLine(const absl::Status& status) const {
  return json_ ? ErrorJson(status) : ErrorText(status);
}

}  // namespace nni_compression::cli
