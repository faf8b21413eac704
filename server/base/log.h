// One line an event: `event=session_bound session=4f.. tenant=default`, or the same as JSON.
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

// kText: name=value, with quotes where it needs them. kJson: an object, all values of which are
// strings.
enum class LogFormat { kText, kJson };

// Logs to stderr from `level` ("debug", "info", "warning", "error") on, in `format` ("text",
// "json"). INVALID_ARGUMENT for another name. Called once, before anything is logged.
absl::Status SetUpLog(absl::string_view level, absl::string_view format = "text");

// Whether such events are written. Thread-safe.
bool IsLogged(LogLevel level);

// Values come from anywhere: they are escaped, and cut after 512 bytes. Thread-safe.
void Log(LogLevel level, absl::string_view event, std::initializer_list<LogField> fields = {});

// The same for what callers can cause as often as they like: of an event about one `subject` (a
// tenant, an address) the log takes as many lines as LogLimiter says. Thread-safe.
void LogLimited(LogLevel level, absl::string_view event, absl::string_view subject,
                std::initializer_list<LogField> fields);

// Logs `log_suppressed` for every event and subject of which lines were left out since the last
// time. To be called now and then, and at the end. Thread-safe.
void LogSuppressed();

// The line without time and level; of kJson, the object without its braces.
std::string FormatEvent(absl::string_view event, std::initializer_list<LogField> fields,
                        LogFormat format = LogFormat::kText);

// `text` without control characters or invalid UTF-8, at most `max_bytes` long: safe for logs,
// messages and metadata.
std::string Printable(absl::string_view text, size_t max_bytes);

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_BASE_LOG_H_
