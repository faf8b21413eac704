#include "server/base/log.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>

#include "absl/strings/escaping.h"
#include "compression/messages/names.h"
#include "server/base/log_limiter.h"

namespace nni_compression::server {
namespace {

constexpr size_t kMaxValueBytes = 512;
constexpr char kTextPattern[] = "time=%Y-%m-%dT%H:%M:%S.%e%z level=%l %v";
constexpr char kJsonPattern[] = R"({"time":"%Y-%m-%dT%H:%M:%S.%e%z","level":"%l",%v})";
constexpr char kLogger[] = "nni_compression_server";

std::atomic<LogFormat> log_format = LogFormat::kText;

spdlog::level::level_enum ToSpdlog(LogLevel level) {
  static constexpr spdlog::level::level_enum kLevels[] = {spdlog::level::debug, spdlog::level::info,
                                                          spdlog::level::warn, spdlog::level::err};
  return kLevels[static_cast<int>(level)];
}

spdlog::logger& Logger() {
  static spdlog::logger* const logger = [] {
    auto* created = new spdlog::logger(kLogger, std::make_shared<spdlog::sinks::stderr_sink_mt>());
    created->set_pattern(kTextPattern);
    created->set_level(spdlog::level::warn);
    created->flush_on(spdlog::level::info);
    return created;
  }();
  return *logger;
}

// Process-wide, like the log itself.
LogLimiter& Limiter() {
  static auto* const limiter = new LogLimiter;
  return *limiter;
}

// Characters that end a line or move a terminal's cursor in some reader: C0, C1, U+2028 and U+2029.
bool IsControl(absl::string_view sequence) {
  const auto first = static_cast<unsigned char>(sequence[0]);
  return first < 0x20 || first == 0x7f ||
         (first == 0xc2 && static_cast<unsigned char>(sequence[1]) < 0xa0) ||
         sequence == "\xe2\x80\xa8" || sequence == "\xe2\x80\xa9";
}

bool IsBare(absl::string_view value) {
  return !value.empty() && value.find_first_of(" =\"\\") == absl::string_view::npos;
}

std::string Escaped(absl::string_view bytes) {
  std::string escaped;
  for (const char c : bytes) {
    absl::StrAppend(&escaped, "\\x", absl::Hex(static_cast<unsigned char>(c), absl::kZeroPad2));
  }
  return escaped;
}

std::string Quoted(absl::string_view text) {
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') quoted += '\\';
    quoted += c;
  }
  return quoted + '"';
}

}  // namespace

absl::Status SetUpLog(absl::string_view level, absl::string_view format) {
  if (format == "json") {
    log_format = LogFormat::kJson;
    Logger().set_pattern(kJsonPattern);
  } else if (format != "text") {
    return absl::InvalidArgumentError(
        absl::StrCat("log_format is ", format, "; it must be text or json"));
  }
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
  if (!IsLogged(level)) return;
  Logger().log(ToSpdlog(level), spdlog::string_view_t("{}"),
               FormatEvent(event, fields, log_format));
}

void LogLimited(LogLevel level, absl::string_view event, absl::string_view subject,
                std::initializer_list<LogField> fields) {
  if (!IsLogged(level)) return;
  // Errors, which are the server's own, have a limit of their own: events that callers cause must
  // not suppress them.
  const std::string name =
      level == LogLevel::kError ? absl::StrCat(event, "/error") : std::string(event);
  if (Limiter().Admit(name, subject, std::chrono::steady_clock::now())) Log(level, event, fields);
}

void LogSuppressed() {
  for (const auto& each : Limiter().TakeSuppressed(std::chrono::steady_clock::now())) {
    Log(LogLevel::kWarning, "log_suppressed",
        {{"of", each.event}, {"subject", each.subject}, {"lines", each.lines}});
  }
}

bool IsLogged(LogLevel level) { return Logger().should_log(ToSpdlog(level)); }

std::string FormatEvent(absl::string_view event, std::initializer_list<LogField> fields,
                        LogFormat format) {
  const bool json = format == LogFormat::kJson;
  std::string line =
      json ? absl::StrCat("\"event\":", Quoted(event)) : absl::StrCat("event=", event);
  for (const auto& [name, value] : fields) {
    // Without control characters and invalid UTF-8, JSON needs no other escapes either.
    const std::string text = Printable(value.Piece(), kMaxValueBytes);
    if (json) {
      absl::StrAppend(&line, ",", Quoted(name), ":", Quoted(text));
    } else {
      absl::StrAppend(&line, " ", name, "=", IsBare(text) ? text : Quoted(text));
    }
  }
  return line;
}

std::string Printable(absl::string_view text, size_t max_bytes) {
  std::string out;
  while (!text.empty()) {
    const size_t length = compression::Utf8SequenceLength(text);
    std::string piece(text.substr(0, length));
    if (length == 0) piece = Escaped(text.substr(0, 1));
    if (length > 0 && IsControl(piece)) piece = Escaped(piece);
    if (out.size() + piece.size() > max_bytes) {
      out.resize(std::min(out.size(), max_bytes - std::min<size_t>(max_bytes, 3)));
      while (!out.empty() && (static_cast<unsigned char>(out.back()) & 0xc0) == 0x80) {
        out.pop_back();  // never in the middle of a UTF-8 sequence
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
