// Which failed calls are retried, and when.
#ifndef NNI_COMPRESSION_CLIENT_CPP_RETRY_H_
#define NNI_COMPRESSION_CLIENT_CPP_RETRY_H_

#include <map>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "nni_compression/client.h"

namespace nni_compression::internal {

// How an attempt ended.
struct Outcome {
  absl::Status status;
  // The trailer grpc-retry-pushback-ms, or what a google.rpc.RetryInfo says. A negative or
  // unreadable one forbids a retry.
  std::optional<std::string> pushback = std::nullopt;
  bool progress = false;  // the next attempt has less to do
};

// The delay of the google.rpc.RetryInfo in a status's details; nullopt when there is none.
std::optional<absl::Duration> RetryDelay(const std::string& details);

// The attempts of one call. All methods of the service are retryable, so only the status decides:
// UNAVAILABLE, and RESOURCE_EXHAUSTED with a pushback. Thread-compatible.
class Retry {
 public:
  Retry(const RetryOptions& options, absl::Time deadline)
      : options_(options), deadline_(deadline), backoff_(options.initial_backoff) {}

  absl::Time deadline() const { return deadline_; }

  // How long to wait before the next attempt; nullopt when there is none, because the error is
  // final or the wait would exceed the deadline or the time limit.
  std::optional<absl::Duration> NextDelay(const Outcome& outcome, absl::Time now);

 private:
  const RetryOptions options_;
  const absl::Time deadline_;
  absl::Duration backoff_;
  std::optional<absl::Time> unavailable_since_;
};

}  // namespace nni_compression::internal

#endif  // NNI_COMPRESSION_CLIENT_CPP_RETRY_H_
