#include "server/calls/service.h"

#include <memory>
#include <utility>

#include "server/base/errors.h"
#include "server/calls/add_statistics.h"
#include "server/calls/bind_model.h"
#include "server/calls/calc_mask.h"
#include "server/calls/export_handler.h"
#include "server/calls/quantize_weight.h"
#include "server/calls/session_rpcs.h"
#include "server/calls/step_handler.h"
#include "server/calls/unary_call.h"
#include "server/convert/grpc_status.h"

namespace nni_compression::server {

namespace v1 = ::nni::compression::v1;

namespace {

template <class Handler>
std::shared_ptr<StreamCall> MakeCall(Components* components,
                                     const std::shared_ptr<CallContext>& context) {
  return StreamCall::Create(components->environment(*context), [&](StreamCall* call) {
    return std::make_unique<Handler>(components, context, call);
  });
}

#define NNI_COMPRESSION_METHOD(name) "nni.compression.v1.CompressionService/" name

}  // namespace

template <class Request, class Response>
grpc::ServerUnaryReactor* Service::Unary(Grpc* grpc, const char* method,
                                         const grpc::ByteBuffer* request, grpc::ByteBuffer* reply,
                                         UnaryHandler<Request, Response> handler) {
  return UnaryCall::Start<Request, Response>(components_, grpc, method, request, reply, handler);
}

grpc::ServerUnaryReactor* Service::BindModel(Grpc* grpc, const grpc::ByteBuffer* request,
                                             grpc::ByteBuffer* reply) {
  return Unary(grpc, NNI_COMPRESSION_METHOD("BindModel"), request, reply, &server::BindModel);
}

grpc::ServerUnaryReactor* Service::FindWeights(Grpc* grpc, const grpc::ByteBuffer* request,
                                               grpc::ByteBuffer* reply) {
  return Unary(grpc, NNI_COMPRESSION_METHOD("FindWeights"), request, reply, &server::FindWeights);
}

grpc::ServerUnaryReactor* Service::UpdateEpoch(Grpc* grpc, const grpc::ByteBuffer* request,
                                               grpc::ByteBuffer* reply) {
  return Unary(grpc, NNI_COMPRESSION_METHOD("UpdateEpoch"), request, reply, &server::UpdateEpoch);
}

grpc::ServerUnaryReactor* Service::ReportResults(Grpc* grpc, const grpc::ByteBuffer* request,
                                                 grpc::ByteBuffer* reply) {
  return Unary(grpc, NNI_COMPRESSION_METHOD("ReportResults"), request, reply,
               &server::ReportResults);
}

grpc::ServerUnaryReactor* Service::KeepAlive(Grpc* grpc, const grpc::ByteBuffer* request,
                                             grpc::ByteBuffer* reply) {
  return Unary(grpc, NNI_COMPRESSION_METHOD("KeepAlive"), request, reply, &server::KeepAlive);
}

grpc::ServerUnaryReactor* Service::GetSession(Grpc* grpc, const grpc::ByteBuffer* request,
                                              grpc::ByteBuffer* reply) {
  return Unary(grpc, NNI_COMPRESSION_METHOD("GetSession"), request, reply, &server::GetSession);
}

grpc::ServerUnaryReactor* Service::ListSessions(Grpc* grpc, const grpc::ByteBuffer* request,
                                                grpc::ByteBuffer* reply) {
  return Unary(grpc, NNI_COMPRESSION_METHOD("ListSessions"), request, reply, &server::ListSessions);
}

grpc::ServerUnaryReactor* Service::CloseSession(Grpc* grpc, const grpc::ByteBuffer* request,
                                                grpc::ByteBuffer* reply) {
  return Unary(grpc, NNI_COMPRESSION_METHOD("CloseSession"), request, reply, &server::CloseSession);
}

grpc::ServerUnaryReactor* Service::ListAlgorithms(Grpc* grpc, const grpc::ByteBuffer* request,
                                                  grpc::ByteBuffer* reply) {
  return Unary(grpc, NNI_COMPRESSION_METHOD("ListAlgorithms"), request, reply,
               &server::ListAlgorithms);
}

grpc::ServerUnaryReactor* Service::ListTenants(Grpc* grpc, const grpc::ByteBuffer* request,
                                               grpc::ByteBuffer* reply) {
  return Unary(grpc, NNI_COMPRESSION_METHOD("ListTenants"), request, reply, &server::ListTenants);
}

template <class Handler>
BidiReactor* Service::Stream(Grpc* grpc, const char* method) {
  auto context = components_->gate->Admit(grpc, method);
  if (!context.ok()) return RefuseBidi(FinishWith(context.status(), grpc));
  const std::shared_ptr<CallContext> shared = *std::move(context);
  return StartBidi(grpc, shared, MakeCall<Handler>(components_, shared));
}

BidiReactor* Service::CalcMask(Grpc* grpc) {
  return Stream<CalcMaskHandler>(grpc, NNI_COMPRESSION_METHOD("CalcMask"));
}

BidiReactor* Service::QuantizeWeight(Grpc* grpc) {
  return Stream<QuantizeWeightHandler>(grpc, NNI_COMPRESSION_METHOD("QuantizeWeight"));
}

BidiReactor* Service::AddStatistics(Grpc* grpc) {
  return Stream<AddStatisticsHandler>(grpc, NNI_COMPRESSION_METHOD("AddStatistics"));
}

BidiReactor* Service::Export(Grpc* grpc) {
  return Stream<ExportHandler>(grpc, NNI_COMPRESSION_METHOD("Export"));
}

ReadReactor* Service::Step(Grpc* grpc, grpc::ByteBuffer* response) {
  auto context = components_->gate->Admit(grpc, NNI_COMPRESSION_METHOD("Step"));
  if (!context.ok()) return RefuseRead(FinishWith(context.status(), grpc));
  const std::shared_ptr<CallContext> shared = *std::move(context);
  return StartRead(grpc, shared, MakeCall<StepHandler>(components_, shared), response);
}

}  // namespace nni_compression::server
