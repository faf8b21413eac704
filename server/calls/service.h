// nni.compression.v1.CompressionService on gRPC's callback API.
#ifndef NNI_COMPRESSION_SERVER_CALLS_SERVICE_H_
#define NNI_COMPRESSION_SERVER_CALLS_SERVICE_H_

#include "nni/compression/v1/compression.grpc.pb.h"
#include "server/calls/components.h"
#include "server/calls/stream_reactors.h"
#include "server/calls/unary_call.h"

namespace nni_compression::server {

// All calls take raw messages: nothing is parsed before its memory is reserved.
template <class Base>
using WithUnaryMethods = nni::compression::v1::CompressionService::WithRawCallbackMethod_BindModel<
    nni::compression::v1::CompressionService::WithRawCallbackMethod_FindWeights<
        nni::compression::v1::CompressionService::WithRawCallbackMethod_UpdateEpoch<
            nni::compression::v1::CompressionService::WithRawCallbackMethod_ReportResults<
                nni::compression::v1::CompressionService::WithRawCallbackMethod_KeepAlive<
                    nni::compression::v1::CompressionService::WithRawCallbackMethod_GetSession<
                        nni::compression::v1::CompressionService::
                            WithRawCallbackMethod_ListSessions<
                                nni::compression::v1::CompressionService::
                                    WithRawCallbackMethod_CloseSession<
                                        nni::compression::v1::CompressionService::
                                            WithRawCallbackMethod_ListAlgorithms<
                                                nni::compression::v1::CompressionService::
                                                    WithRawCallbackMethod_ListTenants<
                                                        Base>>>>>>>>>>;

template <class Base>
using WithStreamMethods = nni::compression::v1::CompressionService::WithRawCallbackMethod_CalcMask<
    nni::compression::v1::CompressionService::WithRawCallbackMethod_QuantizeWeight<
        nni::compression::v1::CompressionService::WithRawCallbackMethod_Step<
            nni::compression::v1::CompressionService::WithRawCallbackMethod_AddStatistics<
                nni::compression::v1::CompressionService::WithRawCallbackMethod_Export<Base>>>>>;

// Routes calls through the gate to their handlers. Thread-safe.
class Service final : public WithUnaryMethods<
                          WithStreamMethods<nni::compression::v1::CompressionService::Service>> {
 public:
  // `components` outlives the service.
  explicit Service(Components* components) : components_(components) {}

 private:
  using Grpc = grpc::CallbackServerContext;

  grpc::ServerUnaryReactor* BindModel(Grpc* grpc, const grpc::ByteBuffer* request,
                                      grpc::ByteBuffer* reply) override;
  grpc::ServerUnaryReactor* FindWeights(Grpc* grpc, const grpc::ByteBuffer* request,
                                        grpc::ByteBuffer* reply) override;
  grpc::ServerUnaryReactor* UpdateEpoch(Grpc* grpc, const grpc::ByteBuffer* request,
                                        grpc::ByteBuffer* reply) override;
  grpc::ServerUnaryReactor* ReportResults(Grpc* grpc, const grpc::ByteBuffer* request,
                                          grpc::ByteBuffer* reply) override;
  grpc::ServerUnaryReactor* KeepAlive(Grpc* grpc, const grpc::ByteBuffer* request,
                                      grpc::ByteBuffer* reply) override;
  grpc::ServerUnaryReactor* GetSession(Grpc* grpc, const grpc::ByteBuffer* request,
                                       grpc::ByteBuffer* reply) override;
  grpc::ServerUnaryReactor* ListSessions(Grpc* grpc, const grpc::ByteBuffer* request,
                                         grpc::ByteBuffer* reply) override;
  grpc::ServerUnaryReactor* CloseSession(Grpc* grpc, const grpc::ByteBuffer* request,
                                         grpc::ByteBuffer* reply) override;
  grpc::ServerUnaryReactor* ListAlgorithms(Grpc* grpc, const grpc::ByteBuffer* request,
                                           grpc::ByteBuffer* reply) override;
  grpc::ServerUnaryReactor* ListTenants(Grpc* grpc, const grpc::ByteBuffer* request,
                                        grpc::ByteBuffer* reply) override;
  BidiReactor* CalcMask(Grpc* grpc) override;
  BidiReactor* QuantizeWeight(Grpc* grpc) override;
  BidiReactor* AddStatistics(Grpc* grpc) override;
  BidiReactor* Export(Grpc* grpc) override;
  ReadReactor* Step(Grpc* grpc, grpc::ByteBuffer* response) override;

  template <class Request, class Response>
  using UnaryHandler = void (*)(const std::shared_ptr<UnaryCall>&, const Request&, Response*);

  template <class Request, class Response>
  grpc::ServerUnaryReactor* Unary(Grpc* grpc, const char* method, const grpc::ByteBuffer* request,
                                  grpc::ByteBuffer* reply, UnaryHandler<Request, Response> handler);

  template <class Handler>
  BidiReactor* Stream(Grpc* grpc, const char* method);

  Components* const components_;
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_CALLS_SERVICE_H_
