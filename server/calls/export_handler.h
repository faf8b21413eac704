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

// Plans the files once all headers are there, and then produces them piece by piece as the client
// takes them; a tensor is sent from where it arrived. Only the planning runs in the session. What
// is planned runs code of the session's algorithm, so it is used, and let go of, where that runs.
class ExportHandler final : public StreamHandler {
 public:
  ExportHandler(Components* components, const std::shared_ptr<CallContext>& context,
                StreamCall* call)
      : components_(components),
        share_(context->memory_share()),
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

  // Once: no more headers may come.
  void Plan();
  // Memory beside the tensors. RESOURCE_EXHAUSTED.
  absl::StatusOr<Reservation> Reserve(int64_t bytes);

  // On strand_, from here on. Produces about a message, when one is wanted and can be.
  absl::StatusOr<Reply> Pump();
  // Hands tensors to a plan that makes its files of all of them; says whether the files are there.
  absl::StatusOr<bool> Observe();
  absl::Status ProduceSegment(const compression::Segment& segment, Reply* reply);
  void BeginFile(const compression::ExportFile& file, Reply* reply);

  Components* const components_;
  const MemoryShare share_;
  StreamCall* const call_;
  SessionScope session_;

  // Of the reading side.
  const compression::Exporter* exporter_ = nullptr;
  nlohmann::json options_;
  Reservation options_memory_;
  std::vector<compression::ExportTensor> announced_;
  std::vector<uint32_t> order_;  // indices of announced_
  std::set<std::string> names_;
  size_t arrived_ = 0;
  bool planned_ = false;

  // Its executor is the one of the session's algorithm.
  std::shared_ptr<Strand> strand_;

  // Of strand_.
  compression::ExportPlan plan_;
  Reservation memory_;        // what it takes
  bool ready_ = false;        // plan_ is there
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
