#include "client/cpp/retry.h"

#include <google/protobuf/any.pb.h>
#include <google/protobuf/duration.pb.h>
#include <google/protobuf/empty.pb.h>
#include <google/protobuf/unknown_field_set.h>

#include <algorithm>
#include <vector>

#include "absl/random/random.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"

namespace nni_compression::internal {
namespace {

// Between half of `duration` and all of it, so that many clients do not return as one.
absl::Duration Jittered(absl::Duration duration) {
  thread_local absl::BitGen random;
  return duration * absl::Uniform(random, 0.5, 1.0);
}

// The contents of a length-delimited field of a message. Without the message's generated code,
// which a program that links this may have, too: registered twice, it would not start.
std::vector<std::string> BytesOf(const std::string& message, int field) {
  google::protobuf::Empty fields;
  std::vector<std::string> contents;
  if (!fields.ParseFromString(message)) return contents;
  const google::protobuf::UnknownFieldSet& all = fields.GetReflection()->GetUnknownFields(fields);
  for (int i = 0; i < all.field_count(); ++i) {
    const google::protobuf::UnknownField& one = all.field(i);
    if (one.number() == field &&
        one.type() == google::protobuf::UnknownField::TYPE_LENGTH_DELIMITED) {
      contents.push_back(one.length_delimited());
    }
  }
  return contents;
}

constexpr int kDetails = 3;     // of google.rpc.Status
constexpr int kRetryDelay = 1;  // of google.rpc.RetryInfo

}  // namespace

std::optional<absl::Duration> RetryDelay(const std::string& details) {
  for (const std::string& detail : BytesOf(details, kDetails)) {
    google::protobuf::Any any;
    if (!any.ParseFromString(detail) || !absl::EndsWith(any.type_url(), "/google.rpc.RetryInfo")) {
      continue;
    }
    for (const std::string& delay : BytesOf(any.value(), kRetryDelay)) {
      google::protobuf::Duration duration;
      if (!duration.ParseFromString(delay)) continue;
      return absl::Seconds(duration.seconds()) + absl::Nanoseconds(duration.nanos());
    }
  }
  return std::nullopt;
}

std::optional<absl::Duration> Retry::NextDelay(const Outcome& outcome, absl::Time now) {
  const absl::StatusCode code = outcome.status.code();
  if (outcome.progress) {
    backoff_ = options_.initial_backoff;
    unavailable_since_.reset();
  }
  std::optional<absl::Duration> delay;
  if (outcome.pushback) {
    int64_t milliseconds = 0;
    if (!absl::SimpleAtoi(*outcome.pushback, &milliseconds) || milliseconds < 0)
      return std::nullopt;
    if (code == absl::StatusCode::kResourceExhausted || code == absl::StatusCode::kUnavailable) {
      delay = absl::Milliseconds(milliseconds);
    }
  } else if (code == absl::StatusCode::kUnavailable) {
    if (!unavailable_since_) unavailable_since_ = now;
    delay = Jittered(backoff_);
    backoff_ = std::min(backoff_ * options_.multiplier, options_.max_backoff);
    if (now + *delay - *unavailable_since_ > options_.time_limit) return std::nullopt;
  }
  if (!delay || now + *delay >= deadline_) return std::nullopt;
  return delay;
}

}  // namespace nni_compression::internal
