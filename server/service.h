// nni.compression.v1.CompressionService on gRPC's callback API.
#ifndef NNI_COMPRESSION_SERVER_SERVICE_H_
#define NNI_COMPRESSION_SERVER_SERVICE_H_

#include "nni/compression/v1/compression.grpc.pb.h"
#include "server/core.h"
#include "server/stream_reactors.h"

namespace nni_compression::server {

// The tensors' calls take raw messages, the others parsed ones.
template <class Base>
using WithUnaryMethods = nni::compression::v1::CompressionService::WithCallbackMethod_BindModel<
    nni::compression::v1::CompressionService::WithCallbackMethod_FindWeights<
        nni::compression::v1::CompressionService::WithCallbackMethod_UpdateEpoch<
            nni::compression::v1::CompressionService::WithCallbackMethod_KeepAlive<
                nni::compression::v1::CompressionService::WithCallbackMethod_GetSession<
                    nni::compression::v1::CompressionService::WithCallbackMethod_ListSessions<
                        nni::compression::v1::CompressionService::WithCallbackMethod_CloseSession<
                            nni::compression::v1::CompressionService::
                                WithCallbackMethod_ListAlgorithms<
                                    nni::compression::v1::CompressionService::
                                        WithCallbackMethod_ListTenants<Base>>>>>>>>>;

template <class Base>
using WithStreamMethods = nni::compression::v1::CompressionService::WithRawCallbackMethod_CalcMask<
    nni::compression::v1::CompressionService::WithRawCallbackMethod_QuantizeWeight<
        nni::compression::v1::CompressionService::WithRawCallbackMethod_Step<
            nni::compression::v1::CompressionService::WithRawCallbackMethod_Export<Base>>>>;

// Routes calls through the gate to what handles them. Thread-safe.
class Service final : public WithUnaryMethods<
                          WithStreamMethods<nni::compression::v1::CompressionService::Service>> {
 public:
  // `core` outlives the service.
  explicit Service(Core* core) : core_(core) {}

 private:
  using Grpc = grpc::CallbackServerContext;

  grpc::ServerUnaryReactor* BindModel(Grpc* grpc,
                                      const nni::compression::v1::BindModelRequest* request,
                                      nni::compression::v1::BindModelResponse* response) override;
  grpc::ServerUnaryReactor* FindWeights(
      Grpc* grpc, const nni::compression::v1::FindWeightsRequest* request,
      nni::compression::v1::FindWeightsResponse* response) override;
  grpc::ServerUnaryReactor* UpdateEpoch(
      Grpc* grpc, const nni::compression::v1::UpdateEpochRequest* request,
      nni::compression::v1::UpdateEpochResponse* response) override;
  grpc::ServerUnaryReactor* KeepAlive(Grpc* grpc,
                                      const nni::compression::v1::KeepAliveRequest* request,
                                      nni::compression::v1::KeepAliveResponse* response) override;
  grpc::ServerUnaryReactor* GetSession(Grpc* grpc,
                                       const nni::compression::v1::GetSessionRequest* request,
                                       nni::compression::v1::GetSessionResponse* response) override;
  grpc::ServerUnaryReactor* ListSessions(
      Grpc* grpc, const nni::compression::v1::ListSessionsRequest* request,
      nni::compression::v1::ListSessionsResponse* response) override;
  grpc::ServerUnaryReactor* CloseSession(
      Grpc* grpc, const nni::compression::v1::CloseSessionRequest* request,
      nni::compression::v1::CloseSessionResponse* response) override;
  grpc::ServerUnaryReactor* ListAlgorithms(
      Grpc* grpc, const nni::compression::v1::ListAlgorithmsRequest* request,
      nni::compression::v1::ListAlgorithmsResponse* response) override;

  grpc::ServerUnaryReactor* ListTenants(
      Grpc* grpc, const nni::compression::v1::ListTenantsRequest* request,
      nni::compression::v1::ListTenantsResponse* response) override;

  BidiReactor* CalcMask(Grpc* grpc) override;
  BidiReactor* QuantizeWeight(Grpc* grpc) override;
  BidiReactor* Export(Grpc* grpc) override;
  ReadReactor* Step(Grpc* grpc, grpc::ByteBuffer* response) override;

  template <class Handler>
  BidiReactor* Stream(Grpc* grpc, const char* method);

  Core* const core_;
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_SERVICE_H_
