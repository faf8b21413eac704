// A channel to one server, and what all calls over it share.
#ifndef NNI_COMPRESSION_CLIENT_CPP_CONNECTION_H_
#define NNI_COMPRESSION_CLIENT_CPP_CONNECTION_H_

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/support/status.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "client/cpp/retry.h"
#include "client/cpp/shared_memory.h"
#include "nni/compression/v1/compression.grpc.pb.h"
#include "nni_compression/client.h"

namespace nni_compression::internal {

// 128 random bits in hexadecimal: route keys and request ids.
std::string RandomId();

// Where calls go, and what their attempts share. Thread-safe.
struct Route {
  explicit Route(std::string route_key) : key(std::move(route_key)) {}

  const std::string key;  // keeps a session's calls on one server behind a proxy
  // The latest revision of the session that its server has reported; every call sends it back. A
  // server whose data directory has lost later changes answers NOT_FOUND.
  mutable std::atomic<uint64_t> revision{0};
};

// Immutable after Open; thread-safe.
class Connection {
 public:
  // See Client::Connect.
  static absl::StatusOr<std::shared_ptr<const Connection>> Open(std::string address,
                                                                const ClientOptions& options);

  const std::string& address() const { return address_; }
  const ClientOptions& options() const { return options_; }
  const std::shared_ptr<grpc::Channel>& channel() const { return channel_; }

  SharedMemory& shared_memory() const { return *shared_memory_; }

  // A context with the deadline and the metadata that every call carries.
  std::unique_ptr<grpc::ClientContext> NewContext(absl::Time deadline, const Route& route) const;

  // How the call ended; the message has the address when the error is not from the server.
  Outcome OutcomeOf(const grpc::Status& status, const grpc::ClientContext& context,
                    const Route& route) const;

  // Makes attempts until one succeeds or its error is not retryable.
  absl::Status WithRetries(Retry retry,
                           absl::FunctionRef<Outcome(absl::Time deadline)> attempt) const;

  // Calls a unary method. The response is empty before each attempt.
  template <typename Request, typename Response>
  absl::StatusOr<Response> Unary(grpc::Status (v1::CompressionService::Stub::*method)(
                                     grpc::ClientContext*, const Request&, Response*),
                                 const Request& request, const Route& route,
                                 const CallOptions& options) const {
    Response response;
    absl::Status status =
        WithRetries(NewRetry(options, options_.timeout), [&](absl::Time deadline) {
          response.Clear();
          const auto context = NewContext(deadline, route);
          return OutcomeOf((stub_.get()->*method)(context.get(), request, &response), *context,
                           route);
        });
    if (!status.ok()) return status;
    return response;
  }

  // The attempts of a call that begins now.
  Retry NewRetry(const CallOptions& options, absl::Duration default_timeout) const {
    return Retry(options_.retry, absl::Now() + options.timeout.value_or(default_timeout));
  }

 private:
  Connection(std::string address, const ClientOptions& options, const std::string& token,
             std::shared_ptr<grpc::Channel> channel);

  const std::string address_;
  const ClientOptions options_;
  const std::string authorization_;  // metadata of every call under that key; empty: none
  const std::shared_ptr<grpc::Channel> channel_;
  const std::unique_ptr<v1::CompressionService::Stub> stub_;
  const std::unique_ptr<SharedMemory> shared_memory_;
};

}  // namespace nni_compression::internal

#endif  // NNI_COMPRESSION_CLIENT_CPP_CONNECTION_H_
