#include "server/monitoring/health_check.h"

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "server/monitoring/http_probe.h"

namespace nni_compression::server {

namespace health = ::grpc::health::v1;

absl::Status CheckHealth(const std::string& address, absl::Duration timeout) {
  if (absl::StrContains(address, "://")) return AskProbe(address, timeout);
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  const auto stub = health::Health::NewStub(
      grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments));
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
  health::HealthCheckResponse response;
  const grpc::Status status = stub->Check(&context, health::HealthCheckRequest(), &response);
  if (status.error_code() == grpc::StatusCode::UNAUTHENTICATED) return absl::OkStatus();
  if (!status.ok()) {
    return absl::UnavailableError(
        absl::StrCat("no answer from ", address, ": ", status.error_message()));
  }
  if (response.status() == health::HealthCheckResponse::SERVING) return absl::OkStatus();
  return absl::UnavailableError(
      absl::StrCat("the server at ", address, " is ",
                   health::HealthCheckResponse::ServingStatus_Name(response.status())));
}

std::string LocalAddress(absl::string_view listen) {
  const absl::string_view port = listen.substr(std::min(listen.size(), listen.rfind(':')));
  if (absl::StartsWith(listen, "0.0.0.0:")) return absl::StrCat("127.0.0.1", port);
  if (absl::StartsWith(listen, "[::]:")) return absl::StrCat("[::1]", port);
  return std::string(listen);
}

}  // namespace nni_compression::server
