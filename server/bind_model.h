// BindModel: opens a session.
#ifndef NNI_COMPRESSION_SERVER_BIND_MODEL_H_
#define NNI_COMPRESSION_SERVER_BIND_MODEL_H_

#include <memory>

#include "absl/status/statusor.h"
#include "compression/session.h"
#include "nni/compression/v1/compression.pb.h"
#include "server/memory_budget.h"
#include "server/unary_call.h"

namespace nni_compression::server {

// Validates and binds on the executor, then finishes the call. Request and response live until it
// has.
void BindModel(const std::shared_ptr<UnaryCall>& call,
               const nni::compression::v1::BindModelRequest& request,
               nni::compression::v1::BindModelResponse* response);

// The memory of a session bound by this request: its masks and the binding itself.
// RESOURCE_EXHAUSTED when there is none.
absl::StatusOr<Reservation> ReserveState(MemoryBudget& budget, const MemoryShare& share,
                                         const compression::Session& session,
                                         const nni::compression::v1::BindModelRequest& request);

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_BIND_MODEL_H_
