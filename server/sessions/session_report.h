// What GetSession and ListSessions show.
#ifndef NNI_COMPRESSION_SERVER_SESSIONS_SESSION_REPORT_H_
#define NNI_COMPRESSION_SERVER_SESSIONS_SESSION_REPORT_H_

#include "compression/session/session.h"
#include "nni/compression/v1/compression.pb.h"
#include "server/sessions/session_record.h"
#include "server/sessions/session_store.h"

namespace nni_compression::server {

SessionRecord::Summary Summarize(const compression::Session& session);

// All but the layers, from what any thread may read.
void DescribeSession(const SessionRecord& record, const SessionTimes& times,
                     nni::compression::v1::Session* out);

// How far each layer has come. On the session's strand.
void DescribeLayers(const compression::Session& session, nni::compression::v1::Session* out);

// The names of the layers to ask for. On the session's strand.
void StaleLayers(const compression::Session& session,
                 google::protobuf::RepeatedPtrField<std::string>* out);

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_SESSIONS_SESSION_REPORT_H_
