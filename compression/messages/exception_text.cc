#include "compression/messages/exception_text.h"

#include <c10/util/Exception.h>

#include "absl/strings/match.h"

namespace nni_compression::compression {
namespace {

// Part of the text of every exception from TorchScript's interpreter.
constexpr char kTraceback[] = "Traceback of TorchScript";

}  // namespace

std::string TextOf(const std::exception& e) {
  const auto* const torch = dynamic_cast<const c10::Error*>(&e);
  std::string text = torch != nullptr ? torch->what_without_backtrace() : e.what();
  if (!absl::StrContains(text, kTraceback)) return text;
  // The script's own message is the last line.
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text.substr(text.rfind('\n') + 1);
}

}  // namespace nni_compression::compression
