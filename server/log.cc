#include "server/log.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <memory>

#include "absl/strings/escaping.h"

namespace nni_compression::server {
namespace {

constexpr size_t kMaxValueBytes = 512;
constexpr char kLogger[] = "nni_compression_server";

spdlog::logger& Logger() {
  static spdlog::logger* const logger = [] {
    auto* created = new spdlog::logger(kLogger, std::make_shared<spdlog::sinks::stderr_sink_mt>());
    created->set_pattern("time=%Y-%m-%dT%H:%M:%S.%e%z level=%l %v");
    created->set_level(spdlog::level::warn);
    created->flush_on(spdlog::level::info);
    return created;
  }();
  return *logger;
}

// Bytes of the UTF-8 sequence that `text` begins with; 0 when it is none.
size_t SequenceLength(absl::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const size_t length = byte(0) < 0x80       ? 1
                        : byte(0) >> 5 == 6  ? 2
                        : byte(0) >> 4 == 14 ? 3
                        : byte(0) >> 3 == 30 ? 4
                                             : 0;
  if (length == 0 || length > text.size()) return 0;
  for (size_t i = 1; i < length; ++i) {
    if (byte(i) >> 6 != 2) return 0;
  }
  return length;
}

bool IsBare(absl::string_view value) {
  return !value.empty() && value.find_first_of(" =\"\\") == absl::string_view::npos;
}

}  // namespace

absl::Status SetUpLog(absl::string_view level) {
  for (const auto& [name, value] :
       {std::pair<absl::string_view, spdlog::level::level_enum>("debug", spdlog::level::debug),
        {"info", spdlog::level::info},
        {"warning", spdlog::level::warn},
        {"error", spdlog::level::err}}) {
    if (level == name) {
      Logger().set_level(value);
      return absl::OkStatus();
    }
  }
  return absl::InvalidArgumentError(
      absl::StrCat("log_level is ", level, "; it must be one of debug, info, warning, error"));
}

void Log(LogLevel level, absl::string_view event, std::initializer_list<LogField> fields) {
  static constexpr spdlog::level::level_enum kLevels[] = {spdlog::level::debug, spdlog::level::info,
                                                          spdlog::level::warn, spdlog::level::err};
  const spdlog::level::level_enum at = kLevels[static_cast<int>(level)];
  if (!Logger().should_log(at)) return;
  Logger().log(at, spdlog::string_view_t("{}"), FormatEvent(event, fields));
}

std::string FormatEvent(absl::string_view event, std::initializer_list<LogField> fields) {
  std::string line = absl::StrCat("event=", event);
  for (const auto& [name, value] : fields) {
    const std::string text = Printable(value.Piece(), kMaxValueBytes);
    absl::StrAppend(&line, " ", name, "=");
    if (IsBare(text)) {
      absl::StrAppend(&line, text);
      continue;
    }
    line += '"';
    for (const char c : text) {
      if (c == '"' || c == '\\') line += '\\';
      line += c;
    }
    line += '"';
  }
  return line;
}

std::string Printable(absl::string_view text, size_t max_bytes) {
  std::string out;
  while (!text.empty()) {
    const size_t length = SequenceLength(text);
    const unsigned char first = text[0];
    std::string piece(text.substr(0, length));
    if (length == 0 || first < 0x20 || first == 0x7f) {
      piece = absl::StrCat("\\x", absl::Hex(first, absl::kZeroPad2));
    }
    if (out.size() + piece.size() > max_bytes) {
      out.resize(std::min(out.size(), max_bytes - std::min<size_t>(max_bytes, 3)));
      while (!out.empty() && (static_cast<unsigned char>(out.back()) & 0xc0) == 0x80) {
        out.pop_back();  // not in the middle of a sequence
      }
      if (!out.empty() && static_cast<unsigned char>(out.back()) >= 0xc0) out.pop_back();
      return out + "...";
    }
    out += piece;
    text.remove_prefix(length == 0 ? 1 : length);
  }
  return out;
}

}  // namespace nni_compression::server
