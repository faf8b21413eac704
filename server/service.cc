#include "server/service.h"

#include <memory>
#include <utility>

#include "server/bind_model.h"
#include "server/calc_mask.h"
#include "server/export_handler.h"
#include "server/quantize_weight.h"
#include "server/session_calls.h"
#include "server/status.h"
#include "server/step_handler.h"
#include "server/unary_call.h"

namespace nni_compression::server {

namespace v1 = ::nni::compression::v1;

namespace {

using Call = std::shared_ptr<UnaryCall>;

template <class Handler>
std::shared_ptr<StreamCall> MakeCall(Core* core, const std::shared_ptr<CallContext>& context) {
  return StreamCall::Create(core->environment(*context), [&](StreamCall* call) {
    return std::make_unique<Handler>(core, context, call);
  });
}

#define NNI_COMPRESSION_METHOD(name) "nni.compression.v1.CompressionService/" name

}  // namespace

grpc::ServerUnaryReactor* Service::BindModel(Grpc* grpc, const v1::BindModelRequest* request,
                                             v1::BindModelResponse* response) {
  return UnaryCall::Start(core_, grpc, NNI_COMPRESSION_METHOD("BindModel"), response,
                          [&](const Call& call) { server::BindModel(call, *request, response); });
}

grpc::ServerUnaryReactor* Service::FindWeights(Grpc* grpc, const v1::FindWeightsRequest* request,
                                               v1::FindWeightsResponse* response) {
  return UnaryCall::Start(core_, grpc, NNI_COMPRESSION_METHOD("FindWeights"), response,
                          [&](const Call& call) { server::FindWeights(call, *request, response); });
}

grpc::ServerUnaryReactor* Service::UpdateEpoch(Grpc* grpc, const v1::UpdateEpochRequest* request,
                                               v1::UpdateEpochResponse* response) {
  return UnaryCall::Start(core_, grpc, NNI_COMPRESSION_METHOD("UpdateEpoch"), response,
                          [&](const Call& call) { server::UpdateEpoch(call, *request, response); });
}

grpc::ServerUnaryReactor* Service::KeepAlive(Grpc* grpc, const v1::KeepAliveRequest* request,
                                             v1::KeepAliveResponse* response) {
  return UnaryCall::Start(core_, grpc, NNI_COMPRESSION_METHOD("KeepAlive"), response,
                          [&](const Call& call) { server::KeepAlive(call, *request, response); });
}

grpc::ServerUnaryReactor* Service::GetSession(Grpc* grpc, const v1::GetSessionRequest* request,
                                              v1::GetSessionResponse* response) {
  return UnaryCall::Start(core_, grpc, NNI_COMPRESSION_METHOD("GetSession"), response,
                          [&](const Call& call) { server::GetSession(call, *request, response); });
}

grpc::ServerUnaryReactor* Service::ListSessions(Grpc* grpc, const v1::ListSessionsRequest* request,
                                                v1::ListSessionsResponse* response) {
  return UnaryCall::Start(
      core_, grpc, NNI_COMPRESSION_METHOD("ListSessions"), response,
      [&](const Call& call) { server::ListSessions(call, *request, response); });
}

grpc::ServerUnaryReactor* Service::CloseSession(Grpc* grpc, const v1::CloseSessionRequest* request,
                                                v1::CloseSessionResponse* response) {
  return UnaryCall::Start(core_, grpc, NNI_COMPRESSION_METHOD("CloseSession"), response,
                          [&](const Call& call) { server::CloseSession(call, *request); });
}

grpc::ServerUnaryReactor* Service::ListAlgorithms(Grpc* grpc, const v1::ListAlgorithmsRequest*,
                                                  v1::ListAlgorithmsResponse* response) {
  return UnaryCall::Start(core_, grpc, NNI_COMPRESSION_METHOD("ListAlgorithms"), response,
                          [&](const Call& call) { server::ListAlgorithms(call, response); });
}

grpc::ServerUnaryReactor* Service::ListTenants(Grpc* grpc, const v1::ListTenantsRequest*,
                                               v1::ListTenantsResponse* response) {
  return UnaryCall::Start(core_, grpc, NNI_COMPRESSION_METHOD("ListTenants"), response,
                          [&](const Call& call) { server::ListTenants(call, response); });
}

template <class Handler>
BidiReactor* Service::Stream(Grpc* grpc, const char* method) {
  auto context = core_->gate->Admit(grpc, method);
  if (!context.ok()) return RefuseBidi(FinishWith(context.status(), grpc));
  const std::shared_ptr<CallContext> shared = *std::move(context);
  return StartBidi(grpc, shared, MakeCall<Handler>(core_, shared));
}

BidiReactor* Service::CalcMask(Grpc* grpc) {
  return Stream<CalcMaskHandler>(grpc, NNI_COMPRESSION_METHOD("CalcMask"));
}

BidiReactor* Service::QuantizeWeight(Grpc* grpc) {
  return Stream<QuantizeWeightHandler>(grpc, NNI_COMPRESSION_METHOD("QuantizeWeight"));
}

BidiReactor* Service::Export(Grpc* grpc) {
  return Stream<ExportHandler>(grpc, NNI_COMPRESSION_METHOD("Export"));
}

ReadReactor* Service::Step(Grpc* grpc, grpc::ByteBuffer* response) {
  auto context = core_->gate->Admit(grpc, NNI_COMPRESSION_METHOD("Step"));
  if (!context.ok()) return RefuseRead(FinishWith(context.status(), grpc));
  const std::shared_ptr<CallContext> shared = *std::move(context);
  return StartRead(grpc, shared, MakeCall<StepHandler>(core_, shared), response);
}

}  // namespace nni_compression::server
