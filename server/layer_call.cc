#include "server/layer_call.h"

#include <memory>
#include <utility>

namespace nni_compression::server {
namespace {

// Computing on fewer bytes takes no longer than the small calls that would wait for it.
constexpr int64_t kLongWorkBytes = 4 << 20;

}  // namespace

absl::Status LayerCall::OnTensor(ReceivedTensor tensor) {
  CountReceived(tensor.bytes.size());
  const Work work = tensor.bytes.size() < kLongWorkBytes ? Work::kShort : Work::kLong;
  const auto shared = std::make_shared<ReceivedTensor>(std::move(tensor));
  RunInSession(
      [this, shared](compression::Session& session) { return ApplyChecked(session, *shared); },
      work);
  return absl::OkStatus();
}

absl::Status LayerCall::OnHalfClose() {
  RunInSession([this](compression::Session& session) {
    if (absl::Status status = CheckClock(session); !status.ok()) return status;
    UpdateSummary(session);
    Complete();
    return absl::OkStatus();
  });
  return absl::OkStatus();
}

absl::Status LayerCall::ApplyChecked(compression::Session& session, ReceivedTensor& tensor) {
  if (absl::Status status = CheckClock(session); !status.ok()) return status;
  if (absl::Status status = VerifyChecksum(tensor); !status.ok()) return status;
  const absl::StatusOr<int> layer = session.FindLayer(tensor.header.layer());
  if (!layer.ok()) return layer.status();
  return Apply(session, *layer, tensor);
}

}  // namespace nni_compression::server
