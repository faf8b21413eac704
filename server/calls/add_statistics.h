// AddStatistics: parts of statistics in.
#ifndef NNI_COMPRESSION_SERVER_CALLS_ADD_STATISTICS_H_
#define NNI_COMPRESSION_SERVER_CALLS_ADD_STATISTICS_H_

#include <google/protobuf/message_lite.h>

#include <cstdint>
#include <memory>
#include <optional>

#include "server/calls/layer_handler.h"

namespace nni_compression::server {

// A Method of LayerHandler.
class AddStatistics : public AnsweredApart<compression::StatisticAnswer> {
 public:
  using Open = nni::compression::v1::AddStatisticsRequest::Open;

  static constexpr nni::compression::v1::TensorRole kRoles[] = {
      nni::compression::v1::TENSOR_ROLE_STATISTIC};
  static std::optional<compression::AlgorithmKind> Kind() { return std::nullopt; }

  absl::Status Configure(const Open&) { return absl::OkStatus(); }
  int64_t ResultBytes(const SessionRecord& record, int layer,
                      const nni::compression::v1::TensorHeader& header) const;
  static int64_t UnstoredBytes(const nni::compression::v1::TensorHeader& header);
  absl::Status CheckClock(const compression::Session&) const { return absl::OkStatus(); }
  absl::StatusOr<Result> Compute(compression::Session& session, ReceivedTensor& tensor) const;
  absl::StatusOr<Reply> Answer(const compression::Session& session, const ReceivedTensor& tensor,
                               const Result& result, const LayerTensors& tensors) const;
  static std::unique_ptr<google::protobuf::MessageLite> Refusal(
      const nni::compression::v1::TensorHeader& header, const absl::Status& error);
};

using AddStatisticsHandler = LayerHandler<AddStatistics>;

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_CALLS_ADD_STATISTICS_H_
