#include "nni_compression/client.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "client/cpp/connection.h"
#include "client/cpp/convert.h"
#include "client/cpp/environment.h"
#include "client/cpp/health.h"

namespace nni_compression {
namespace {

using Stub = v1::CompressionService::Stub;

// Masks of more bytes than this are not sent in the BindModel message.
constexpr size_t kMaxBindMaskBytes = 2 << 20;
constexpr int kPageSize = 1000;

size_t MaskBytes(const BindRequest& request) {
  size_t bytes = 0;
  for (const InitialMask& mask : request.masks) bytes += mask.bits.size();
  return bytes;
}

// Sends masks that did not fit into BindModel.
absl::Status UploadMasks(const Session& session, const BindRequest& request) {
  std::vector<Tensor> tensors;
  for (const InitialMask& mask : request.masks) {
    for (const Layer& layer : request.layers) {
      if (layer.name != mask.layer) continue;
      tensors.push_back({layer.name, DataType::kBit, layer.shape, mask.bits, TensorRole::kMask});
    }
  }
  for (const auto& result : session.CalcMask(tensors)) {
    if (!result.ok()) return result.status();
  }
  return absl::OkStatus();
}

absl::Status CheckMaskNames(const BindRequest& request) {
  for (const InitialMask& mask : request.masks) {
    bool known = false;
    for (const Layer& layer : request.layers) known = known || layer.name == mask.layer;
    if (!known) {
      return absl::InvalidArgumentError(
          absl::StrCat("masks: ", mask.layer, " is not the name of a layer"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<v1::Session>> AllPages(const internal::Connection& connection,
                                                  const internal::Route& route,
                                                  v1::ListSessionsRequest request,
                                                  const CallOptions& options) {
  request.set_page_size(kPageSize);
  std::vector<v1::Session> sessions;
  do {
    auto response = connection.Unary(&Stub::ListSessions, request, route, options);
    if (!response.ok()) return response.status();
    for (v1::Session& session : *response->mutable_sessions()) {
      sessions.push_back(std::move(session));
    }
    request.set_page_token(response->next_page_token());
  } while (!request.page_token().empty());
  return sessions;
}

}  // namespace

std::string Client::DefaultAddress() {
  const std::string address = internal::Variable("NNI_COMPRESSION_SERVER");
  return address.empty() ? "127.0.0.1:50051" : address;
}

absl::StatusOr<Client> Client::Connect(absl::string_view address, const ClientOptions& options) {
  auto connection = internal::Connection::Open(
      address.empty() ? DefaultAddress() : std::string(address), options);
  if (!connection.ok()) return connection.status();
  return Client(*std::move(connection), internal::RandomId());
}

Client::Client(std::shared_ptr<const internal::Connection> connection, std::string route)
    : connection_(std::move(connection)),
      route_(std::make_shared<const internal::Route>(std::move(route))) {}

const std::string& Client::address() const { return connection_->address(); }

absl::Status Client::Health(const CallOptions& options) const {
  // Not retried when the server answers that it is not serving: that is the result.
  return internal::CheckHealth(
             *connection_, absl::Now() + options.timeout.value_or(connection_->options().timeout),
             *route_)
      .status;
}

absl::StatusOr<v1::ListAlgorithmsResponse> Client::ListAlgorithms(
    const CallOptions& options) const {
  return connection_->Unary(&Stub::ListAlgorithms, v1::ListAlgorithmsRequest(), *route_, options);
}

absl::StatusOr<std::vector<v1::Session>> Client::ListSessions(
    const std::map<std::string, std::string>& labels, const CallOptions& options) const {
  v1::ListSessionsRequest request;
  request.mutable_labels()->insert(labels.begin(), labels.end());
  return AllPages(*connection_, *route_, request, options);
}

absl::StatusOr<std::vector<v1::Session>> Client::ListAllSessions(
    const std::map<std::string, std::string>& labels, const CallOptions& options) const {
  v1::ListSessionsRequest request;
  request.mutable_labels()->insert(labels.begin(), labels.end());
  request.set_include_ended(true);
  return AllPages(*connection_, *route_, request, options);
}

absl::StatusOr<v1::ListTenantsResponse> Client::ListTenants(const CallOptions& options) const {
  return connection_->Unary(&Stub::ListTenants, v1::ListTenantsRequest(), *route_, options);
}

absl::StatusOr<v1::GetSessionResponse> Client::GetSession(absl::string_view session_id,
                                                          const CallOptions& options) const {
  v1::GetSessionRequest request;
  request.set_session_id(std::string(session_id));
  return connection_->Unary(&Stub::GetSession, request, *route_, options);
}

absl::Status Client::CloseSession(absl::string_view session_id, const CallOptions& options) const {
  v1::CloseSessionRequest request;
  request.set_session_id(std::string(session_id));
  return connection_->Unary(&Stub::CloseSession, request, *route_, options).status();
}

absl::StatusOr<Session> Client::BindModel(const BindRequest& request,
                                          const CallOptions& options) const {
  auto proto = internal::ToProto(request);
  if (!proto.ok()) return proto.status();
  proto->set_request_id(internal::RandomId());
  const bool upload_masks = MaskBytes(request) > kMaxBindMaskBytes;
  if (upload_masks) {
    if (absl::Status checked = CheckMaskNames(request); !checked.ok()) return checked;
  } else {
    for (const InitialMask& mask : request.masks) {
      v1::LayerMask* to = proto->add_masks();
      to->set_layer(mask.layer);
      to->set_bits(mask.bits.data(), mask.bits.size());
    }
  }
  const internal::Route route(internal::RandomId());
  auto response = connection_->Unary(&Stub::BindModel, *proto, route, options);
  if (!response.ok()) return response.status();
  Session session(connection_, response->session_id(), route.key,
                  std::move(*response->mutable_plan()),
                  internal::ToVector(response->stale_layers()));
  if (upload_masks) {
    if (absl::Status uploaded = UploadMasks(session, request); !uploaded.ok()) {
      session.Close().IgnoreError();
      return uploaded;
    }
  }
  return session;
}

absl::StatusOr<Session> Client::Join(absl::string_view session_id, absl::string_view route,
                                     const CallOptions& options) const {
  v1::GetSessionRequest request;
  request.set_session_id(std::string(session_id));
  const internal::Route key(route.empty() ? route_->key : std::string(route));
  auto response = connection_->Unary(&Stub::GetSession, request, key, options);
  if (!response.ok()) return response.status();
  if (response->session().state() != v1::SESSION_STATE_ACTIVE) {
    return absl::NotFoundError(absl::StrCat("session ", session_id, " has ended"));
  }
  std::vector<std::string> stale;
  for (const v1::LayerReport& layer : response->session().layers()) {
    if (layer.stale()) stale.push_back(layer.name());
  }
  return Session(connection_, response->session().id(), key.key,
                 std::move(*response->mutable_plan()), std::move(stale));
}

}  // namespace nni_compression
