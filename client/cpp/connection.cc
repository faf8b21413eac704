#include "client/cpp/connection.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/channel_arguments.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <optional>
#include <utility>
#include <vector>

#include "absl/random/random.h"
#include "absl/strings/ascii.h"
#include "absl/strings/cord.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "client/cpp/address.h"
#include "client/cpp/environment.h"
#include "client/cpp/tls.h"
#include "proto/wire/frames.h"
#include "server/platform/shm_paths.h"

namespace nni_compression::internal {
namespace {

// Stock limits are 4 MiB; a server may use all of it.
constexpr int kMaxReceiveBytes = wire::kMaxMessageBytes + (64 << 10);

// Each attempt has an id of its own, which is in the server's log and in the error.
constexpr char kRequestIdKey[] = "nni-request-id";

constexpr char kRevisionKey[] = "nni-session-revision";

constexpr char kShmSocketVariable[] = "NNI_COMPRESSION_SHM_SOCKET";
constexpr char kAllowVariable[] = "NNI_COMPRESSION_ALLOW_INSECURE_TOKEN";

// Where the shared-memory socket of the server at `address` may be, best first.
std::vector<std::string> ShmPaths(const ClientOptions& options, absl::string_view address) {
  std::vector<std::string> paths;
  const auto add = [&](const std::string& path) {
    if (!path.empty()) paths.push_back(path);
  };
  if (options.shm_socket) {
    add(*options.shm_socket);
    return paths;
  }
  const bool named = std::getenv(kShmSocketVariable) != nullptr;
  if (absl::string_view path = address; absl::ConsumePrefix(&path, "unix:")) {
    add(server::ShmPathOfSocket(path));
  } else if (const std::optional<int> port = LoopbackPort(address); port && !named) {
    return server::ShmPathsOfPort(*port);
  }
  add(Variable(kShmSocketVariable));
  return paths;
}

// Metadata is visible ASCII only. The message does not contain the token, which is secret.
absl::StatusOr<std::string> CheckedToken(std::string token, absl::string_view name) {
  if (!token.empty() && std::all_of(token.begin(), token.end(), absl::ascii_isgraph)) return token;
  return absl::InvalidArgumentError(
      absl::StrCat(name, " must be one or more visible ASCII characters"));
}

// Empty when there is none.
absl::StatusOr<std::string> Token(const ClientOptions& options) {
  std::string token = options.token.value_or("");
  std::string path = options.token_file.value_or("");
  if (!token.empty() && !path.empty()) {
    return absl::InvalidArgumentError("token and token_file are both given; it must be one");
  }
  if (!options.token && !options.token_file) {
    token = Variable("NNI_COMPRESSION_TOKEN");
    if (token.empty()) path = Variable("NNI_COMPRESSION_TOKEN_FILE");
  }
  if (!token.empty()) return CheckedToken(std::move(token), "token");
  if (path.empty()) return token;
  std::ifstream file(path);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  if (!file)
    return absl::InvalidArgumentError(absl::StrCat("token_file '", path, "' cannot be read"));
  return CheckedToken(std::string(absl::StripAsciiWhitespace(text)),
                      absl::StrCat("token_file '", path, "'"));
}

// INVALID_ARGUMENT when others could read the token on the network.
absl::Status CheckPrivacy(const std::string& token, absl::string_view address, bool encrypted,
                          std::optional<bool> allow) {
  if (!allow) {
    const std::string wanted = Variable(kAllowVariable);
    if (wanted != "" && wanted != "0" && wanted != "1") {
      return absl::InvalidArgumentError(
          absl::StrCat("$", kAllowVariable, " is '", wanted, "'; it must be 0 or 1"));
    }
    allow = wanted == "1";
  }
  if (token.empty() || encrypted || *allow || IsLoopback(address)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "the token would be sent to ", address,
      " unencrypted, where others can read it; use TLS "
      "($NNI_COMPRESSION_TLS_CA or $NNI_COMPRESSION_TLS=1) or, in a network that you trust, set $",
      kAllowVariable, "=1"));
}

grpc::ChannelArguments Arguments(absl::string_view address) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxReceiveBytes);
  arguments.SetMaxSendMessageSize(-1);
  arguments.SetUserAgentPrefix("nni-compression-cpp/" NNI_COMPRESSION_VERSION);
  // A chunk at a time: some 10 % faster than the default (docs/performance.md).
  arguments.SetInt(GRPC_ARG_HTTP2_WRITE_BUFFER_SIZE, static_cast<int>(wire::kChunkBytes));
  // Calls are retried here. gRPC's own retries would keep slices of the caller's memory.
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 1000);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2000);
  // gRPC reconnects only after it has resolved the name again, by default at most every 30 s.
  arguments.SetInt(GRPC_ARG_DNS_MIN_TIME_BETWEEN_RESOLUTIONS_MS, 100);
  // With keep-alive gRPC also sets TCP_USER_TIMEOUT, which is what ends a connection to a peer that
  // no longer reads. Pings any more frequent would be refused by stock servers.
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 6 * 60 * 1000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20 * 1000);
  // A connection of its own for each Client, with its own reconnection.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  if (IsLoopback(address)) arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  return arguments;
}

// Why gRPC could not connect: an unknown name, a closed port. Empty when it gives no reason.
std::string WhyNotConnected(const std::shared_ptr<grpc::Channel>& channel) {
  grpc::ClientContext context;
  // The answer is immediate when connecting has failed before.
  context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Milliseconds(200)));
  v1::ListAlgorithmsResponse response;
  const grpc::Status status =
      v1::CompressionService::NewStub(channel)->ListAlgorithms(&context, {}, &response);
  if (status.error_code() != grpc::StatusCode::UNAVAILABLE) return "";
  return absl::StrCat("; ", status.error_message());
}

// Threads may report revisions in any order.
void RaiseTo(absl::string_view reported, std::atomic<uint64_t>* revision) {
  uint64_t value = 0;
  if (!absl::SimpleAtoi(reported, &value)) return;
  uint64_t known = *revision;
  while (known < value && !revision->compare_exchange_weak(known, value)) {
  }
}

}  // namespace

std::string RandomId() {
  absl::BitGen random;
  return absl::StrFormat("%016x%016x", absl::Uniform<uint64_t>(random),
                         absl::Uniform<uint64_t>(random));
}

absl::StatusOr<std::shared_ptr<const Connection>> Connection::Open(std::string address,
                                                                   const ClientOptions& options) {
  if (absl::Status status = CheckAddress(address); !status.ok()) return status;
  const absl::StatusOr<std::string> token = Token(options);
  if (!token.ok()) return token.status();
  const auto tls = TlsCredentials(options.tls);
  if (!tls.ok()) return tls.status();
  const bool encrypted = *tls != nullptr;
  absl::Status is_private = CheckPrivacy(*token, address, encrypted, options.allow_insecure_token);
  if (!is_private.ok()) return is_private;
  auto channel = grpc::CreateCustomChannel(
      address, encrypted ? *tls : grpc::InsecureChannelCredentials(), Arguments(address));
  if (!channel->WaitForConnected(absl::ToChronoTime(absl::Now() + options.connect_timeout))) {
    const std::string waited = absl::StrCat(
        "waited ", absl::FormatDuration(options.connect_timeout), WhyNotConnected(channel));
    if (encrypted) {
      return absl::UnavailableError(absl::StrCat(
          "cannot establish an encrypted connection to ", address, " (", waited,
          "); the server may be down, not use TLS, have a certificate for another name or from "
          "another authority than tls.ca, or refuse the client certificate"));
    }
    return absl::UnavailableError(absl::StrCat(
        "no compression server answers at ", address, " (", waited,
        "); start one with `compression_server --listen=", address,
        "`, or set another address, for example in $NNI_COMPRESSION_SERVER; a server with "
        "TLS needs $NNI_COMPRESSION_TLS_CA or $NNI_COMPRESSION_TLS"));
  }
  return std::shared_ptr<const Connection>(
      new Connection(std::move(address), options, *token, std::move(channel)));
}

Connection::Connection(std::string address, const ClientOptions& options, const std::string& token,
                       std::shared_ptr<grpc::Channel> channel)
    : address_(std::move(address)),
      options_(options),
      authorization_(token.empty() ? "" : absl::StrCat("Bearer ", token)),
      channel_(std::move(channel)),
      stub_(v1::CompressionService::NewStub(channel_)),
      shared_memory_(std::make_unique<SharedMemory>(ShmPaths(options, address_), authorization_)) {}

std::unique_ptr<grpc::ClientContext> Connection::NewContext(absl::Time deadline,
                                                            const Route& route) const {
  auto context = std::make_unique<grpc::ClientContext>();
  context->set_deadline(absl::ToChronoTime(deadline));
  context->AddMetadata("nni-route", route.key);
  if (const uint64_t revision = route.revision; revision > 0) {
    context->AddMetadata(kRevisionKey, absl::StrCat(revision));
  }
  thread_local absl::BitGen random;
  context->AddMetadata(kRequestIdKey, absl::StrFormat("%016x", absl::Uniform<uint64_t>(random)));
  if (!authorization_.empty()) context->AddMetadata("authorization", authorization_);
  return context;
}

Outcome Connection::OutcomeOf(const grpc::Status& status, const grpc::ClientContext& context,
                              const Route& route) const {
  Outcome outcome;
  const auto& trailers = context.GetServerTrailingMetadata();
  if (const auto i = trailers.find(kRevisionKey); i != trailers.end()) {
    RaiseTo(absl::string_view(i->second.data(), i->second.size()), &route.revision);
  }
  if (status.ok()) return outcome;
  auto code = static_cast<absl::StatusCode>(status.error_code());
  // A server that shuts down cancels the calls that are late. Calls that are cancelled here have an
  // error of their own.
  if (code == absl::StatusCode::kCancelled) code = absl::StatusCode::kUnavailable;
  // ENHANCE_YOUR_CALM: the server's gRPC is out of memory for the moment.
  if (code == absl::StatusCode::kResourceExhausted &&
      absl::StrContains(status.error_message(), "RST_STREAM with error code 11")) {
    code = absl::StatusCode::kUnavailable;
  }
  const bool about_connection =
      code == absl::StatusCode::kUnavailable || code == absl::StatusCode::kDeadlineExceeded;
  std::string message = status.error_message();
  if (code == absl::StatusCode::kUnimplemented && message.empty()) {
    message = absl::StrCat("the server at ", address_,
                           " does not have this call; it is older than this client");
  }
  outcome.status = absl::Status(
      code, about_connection ? absl::StrCat("server ", address_, ": ", message) : message);
  if (const auto i = trailers.find("grpc-retry-pushback-ms"); i != trailers.end()) {
    outcome.pushback = std::string(i->second.data(), i->second.size());
  } else if (const auto delay = RetryDelay(status.error_details())) {
    outcome.pushback = absl::StrCat(absl::ToInt64Milliseconds(*delay));
  }
  if (const auto i = trailers.find(kRequestIdKey); i != trailers.end()) {
    outcome.status.SetPayload(kRequestIdPayload, absl::Cord({i->second.data(), i->second.size()}));
  }
  return outcome;
}

absl::Status Connection::WithRetries(Retry retry,
                                     absl::FunctionRef<Outcome(absl::Time)> attempt) const {
  while (true) {
    Outcome outcome = attempt(retry.deadline());
    if (outcome.status.ok()) return outcome.status;
    const auto delay = retry.NextDelay(outcome, absl::Now());
    if (!delay) return outcome.status;
    absl::SleepFor(*delay);
  }
}

}  // namespace nni_compression::internal
