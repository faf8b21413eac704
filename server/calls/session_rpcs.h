// The unary calls on existing sessions.
#ifndef NNI_COMPRESSION_SERVER_CALLS_SESSION_RPCS_H_
#define NNI_COMPRESSION_SERVER_CALLS_SESSION_RPCS_H_

#include <memory>

#include "nni/compression/v1/compression.pb.h"
#include "server/calls/components.h"
#include "server/calls/unary_call.h"
#include "server/sessions/session_record.h"

namespace nni_compression::server {

// Each finishes `call`, at once or on the session's strand. Requests and responses live until then.
void FindWeights(const std::shared_ptr<UnaryCall>& call,
                 const nni::compression::v1::FindWeightsRequest& request,
                 nni::compression::v1::FindWeightsResponse* response);
void UpdateEpoch(const std::shared_ptr<UnaryCall>& call,
                 const nni::compression::v1::UpdateEpochRequest& request,
                 nni::compression::v1::UpdateEpochResponse* response);
void ReportResults(const std::shared_ptr<UnaryCall>& call,
                   const nni::compression::v1::ReportResultsRequest& request,
                   nni::compression::v1::ReportResultsResponse* response);
void KeepAlive(const std::shared_ptr<UnaryCall>& call,
               const nni::compression::v1::KeepAliveRequest& request,
               nni::compression::v1::KeepAliveResponse* response);
void GetSession(const std::shared_ptr<UnaryCall>& call,
                const nni::compression::v1::GetSessionRequest& request,
                nni::compression::v1::GetSessionResponse* response);
void ListSessions(const std::shared_ptr<UnaryCall>& call,
                  const nni::compression::v1::ListSessionsRequest& request,
                  nni::compression::v1::ListSessionsResponse* response);
void CloseSession(const std::shared_ptr<UnaryCall>& call,
                  const nni::compression::v1::CloseSessionRequest& request,
                  nni::compression::v1::CloseSessionResponse* response);
void ListAlgorithms(const std::shared_ptr<UnaryCall>& call,
                    const nni::compression::v1::ListAlgorithmsRequest& request,
                    nni::compression::v1::ListAlgorithmsResponse* response);
void ListTenants(const std::shared_ptr<UnaryCall>& call,
                 const nni::compression::v1::ListTenantsRequest& request,
                 nni::compression::v1::ListTenantsResponse* response);

// The `retire` callback of SessionStore: the session's strand writes the last report and frees the
// memory.
void RetireSession(const Components& components, const std::shared_ptr<SessionRecord>& record);

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_CALLS_SESSION_RPCS_H_
