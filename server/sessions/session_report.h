// The replies of GetSession and ListSessions.
#ifndef NNI_COMPRESSION_SERVER_SESSIONS_SESSION_REPORT_H_
#define NNI_COMPRESSION_SERVER_SESSIONS_SESSION_REPORT_H_

#include "compression/session/session.h"
#include "nni/compression/v1/compression.pb.h"
#include "server/sessions/session_record.h"
#include "server/sessions/session_store.h"

namespace nni_compression::server {

SessionRecord::Summary Summarize(const compression::Session& session);

// Everything except the layers and the config_list. Any thread.
void DescribeSession(const SessionRecord& record, const SessionTimes& times,
                     nni::compression::v1::Session* out);

// The state of each layer. On the session's strand.
void DescribeLayers(const compression::Session& session, nni::compression::v1::Session* out);

// The config_list as bound, unless it is too large to be kept. On the session's strand.
void DescribeConfigList(const compression::Session& session, nni::compression::v1::Session* out);

// The checksums of the compressed layers' masks, in order; none for a quantizer. On the session's
// strand.
void MaskChecksums(const compression::Session& session,
                   google::protobuf::RepeatedField<uint32_t>* out);

// The names of the stale layers. On the session's strand.
void StaleLayers(const compression::Session& session,
                 google::protobuf::RepeatedPtrField<std::string>* out);

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_SESSIONS_SESSION_REPORT_H_
