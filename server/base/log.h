// The log, one line per event: `event=session_bound session=4f.. tenant=default`, or JSON.
#ifndef NNI_COMPRESSION_SERVER_BASE_LOG_H_
#define NNI_COMPRESSION_SERVER_BASE_LOG_H_

#include <initializer_list>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace nni_compression::server {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

using LogField = std::pair<absl::string_view, absl::AlphaNum>;

// kText: name=value, quoted where needed. kJson: an object with string values only.
enum class LogFormat { kText, kJson };

// Logs to stderr, at `level` ("debug", "info", "warning", "error") and above, in `format` ("text",
// "json"). INVALID_ARGUMENT for another name. Called once, before anything is logged.
absl::Status SetUpLog(absl::string_view level, absl::string_view format = "text");

// Whether events of this level are written. Thread-safe.
bool IsLogged(LogLevel level);

// Values are untrusted: they are escaped, and truncated to 512 bytes. Thread-safe.
void Log(LogLevel level, absl::string_view event, std::initializer_list<LogField> fields = {});

// The same for events that callers can cause at any rate: lines of an event about one `subject` (a
// tenant, an address) are limited by LogLimiter. Thread-safe.
void LogLimited(LogLevel level, absl::string_view event, absl::string_view subject,
                std::initializer_list<LogField> fields);

// Logs `log_suppressed` for every event and subject with suppressed lines since the last call. To
// be called periodically and at exit. Thread-safe.
void LogSuppressed();

// The line without time and level; for kJson, the object without its braces.
std::string FormatEvent(absl::string_view event, std::initializer_list<LogField> fields,
                        LogFormat format = LogFormat::kText);

// `text` with control characters and invalid UTF-8 escaped, at most `max_bytes` long: safe for
// logs, messages and metadata.
std::string Printable(absl::string_view text, size_t max_bytes);

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_BASE_LOG_H_
