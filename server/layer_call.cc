#include "server/layer_call.h"

#include <memory>
#include <utility>

namespace nni_compression::server {

absl::Status LayerCall::OnTensor(ReceivedTensor tensor) {
  CountReceived(tensor.bytes.size());
  RunInSession([this, tensor = std::make_shared<ReceivedTensor>(std::move(tensor))](
                   compression::Session& session) { return ApplyChecked(session, *tensor); });
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
