#include "server/convert/call_trace.h"

#include <algorithm>

#include "absl/strings/ascii.h"

namespace nni_compression::server {
namespace {

constexpr size_t kMaxRequestId = 64;

// The value of a key that was sent once; of several values none is used.
absl::string_view Only(const grpc::ServerContextBase& context, const char* key) {
  const auto [begin, end] = context.client_metadata().equal_range(key);
  if (begin == end || std::next(begin) != end) return {};
  return {begin->second.data(), begin->second.size()};
}

// W3C allows lower case only, and all zeros mean "none".
bool IsHexId(absl::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return absl::ascii_isdigit(c) || (c >= 'a' && c <= 'f'); }) &&
         text.find_first_not_of('0') != absl::string_view::npos;
}

}  // namespace

bool IsRequestId(absl::string_view text) {
  return !text.empty() && text.size() <= kMaxRequestId &&
         std::all_of(text.begin(), text.end(), [](char c) {
           return absl::ascii_isalnum(c) || c == '.' || c == '_' || c == '-';
         });
}

bool ParseTraceParent(absl::string_view text, CallTrace* trace) {
  // version "-" trace-id "-" parent-id "-" flags; additions of later versions are ignored.
  if (text.size() < 55 || text[2] != '-' || text[35] != '-' || text[52] != '-') return false;
  const absl::string_view version = text.substr(0, 2);
  if (version == "ff" || (version == "00" ? text.size() != 55 : !IsHexId(version))) return false;
  if (!IsHexId(text.substr(3, 32)) || !IsHexId(text.substr(36, 16))) return false;
  trace->trace_id = std::string(text.substr(3, 32));
  trace->parent_id = std::string(text.substr(36, 16));
  return true;
}

CallTrace ReadCallTrace(const grpc::ServerContextBase& context) {
  CallTrace trace;
  if (const absl::string_view id = Only(context, kRequestIdKey); IsRequestId(id)) {
    trace.request_id = std::string(id);
  }
  ParseTraceParent(Only(context, "traceparent"), &trace);
  return trace;
}

}  // namespace nni_compression::server
