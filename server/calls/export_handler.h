// Export: final weights in, files out.
#ifndef NNI_COMPRESSION_SERVER_CALLS_EXPORT_HANDLER_H_
#define NNI_COMPRESSION_SERVER_CALLS_EXPORT_HANDLER_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "compression/exporters/exporter.h"
#include "server/base/strand.h"
#include "server/calls/session_scope.h"
#include "server/tensors/stream_call.h"

namespace nni_compression::server {

// Plans the files once all headers are received, then produces them piece by piece as the client
// reads them; a tensor is sent from the buffer that received it. Only the planning runs in the
// session. The plan runs code of the session's algorithm, so it is used and destroyed on that
// algorithm's executor.
class ExportHandler final : public StreamHandler {
 public:
  ExportHandler(Components* components, const std::shared_ptr<CallContext>& context,
                StreamCall* call)
      : components_(components),
        quota_(context->memory_quota()),
        call_(call),
        session_(components, context, call) {}

 private:
  absl::StatusOr<bool> OnOpen(wire::MessageReader& reader) override;
  Loader MakeLoader() override { return session_.MakeLoader(); }
  absl::Status OnReady() override;
  absl::StatusOr<Admission> OnHeader(const nni::compression::v1::TensorHeader& header,
                                     Reservation& bookkeeping) override;
  absl::Status OnTensor(ReceivedTensor tensor) override;
  absl::Status OnAbandoned(const nni::compression::v1::TensorHeader& header) override;
  absl::Status OnHalfClose() override;
  void OnEnd() override;

  absl::Status CheckTensorHeader(const nni::compression::v1::TensorHeader& header);

  // Called once; no more headers are accepted after it.
  void Plan();
  // Memory in addition to the tensors. RESOURCE_EXHAUSTED.
  absl::StatusOr<Reservation> Reserve(int64_t bytes);

  // On strand_, from here on. Produces about one message, if the client is ready for it and the
  // tensors that it needs are here.
  absl::StatusOr<Reply> Pump();
  // Passes tensors to a plan whose files depend on all of them; returns whether the files are
  // ready.
  absl::StatusOr<bool> Observe();
  absl::Status ProduceSegment(const compression::Segment& segment, Reply* reply);
  void BeginFile(const compression::ExportFile& file, Reply* reply);

  Components* const components_;
  const MemoryQuota quota_;
  StreamCall* const call_;
  SessionScope session_;

  // Used by the reading side.
  const compression::Exporter* exporter_ = nullptr;
  nlohmann::json options_;
  Reservation options_memory_;
  std::vector<compression::ExportTensor> announced_;
  std::vector<uint32_t> order_;  // indices of announced_
  std::set<std::string> names_;
  size_t received_ = 0;
  bool planned_ = false;

  // On the executor of the session's algorithm.
  std::shared_ptr<Strand> strand_;

  // Used on strand_.
  compression::ExportPlan plan_;
  Reservation memory_;        // of plan_
  bool ready_ = false;        // plan_ is set
  bool half_closed_ = false;  // no more tensors
  std::deque<ReceivedTensor> tensors_;
  int observed_ = 0;  // tensors
  size_t file_ = 0;
  size_t segment_ = 0;
  int64_t segment_offset_ = 0;
  int64_t file_offset_ = -1;  // -1: not begun
  bool awaiting_drain_ = false;
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_CALLS_EXPORT_HANDLER_H_
