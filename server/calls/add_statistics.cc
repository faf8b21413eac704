#include "server/calls/add_statistics.h"

#include <string>
#include <utility>

#include "server/convert/convert.h"

namespace nni_compression::server {

namespace v1 = ::nni::compression::v1;

int64_t AddStatistics::ResultBytes(const SessionRecord&, int,
                                   const v1::TensorHeader& header) const {
  // The part and the sum in double, while the session has those before; and a wider histogram.
  constexpr int64_t kCopies = 3;
  return kCopies * UnstoredBytes(header);
}

int64_t AddStatistics::UnstoredBytes(const v1::TensorHeader& header) {
  // The sum, which another part may have replaced by then.
  int64_t elements = 1;
  for (const int64_t size : header.shape()) elements *= size;
  return compression::ByteLength(compression::DataType::kFloat64, elements);
}

absl::StatusOr<AddStatistics::Result> AddStatistics::Compute(compression::Session& session,
                                                             ReceivedTensor& tensor) const {
  // Before it is counted: the digest of a tensor that was found by it is right.
  std::string digest =
      tensor.uploaded ? TensorDigest::Of(tensor.header, tensor.bytes) : tensor.header.digest();
  if (!tensor.header.digest().empty() && digest != tensor.header.digest()) {
    return absl::DataLossError(absl::StrCat("digest of tensor ", tensor.header.index(),
                                            " does not match the bytes received"));
  }
  return session.AddStatistic(tensor.layer,
                              ToStatisticPart(tensor.header, tensor.bytes, std::move(digest)));
}

absl::StatusOr<Reply> AddStatistics::Answer(const compression::Session&,
                                            const ReceivedTensor& tensor, const Result& result,
                                            const LayerTensors&) const {
  auto fields = std::make_unique<v1::AddStatisticsResponse>();
  v1::StatisticResult* answer = fields->add_results();
  answer->set_answers(tensor.header.index());
  answer->set_layer(tensor.header.layer());
  answer->set_known(result.known);
  answer->set_count(static_cast<uint64_t>(result.count));
  Reply reply;
  reply.fields = std::move(fields);
  return reply;
}

std::unique_ptr<google::protobuf::MessageLite> AddStatistics::Refusal(
    const v1::TensorHeader& header, const absl::Status& error) {
  auto fields = std::make_unique<v1::AddStatisticsResponse>();
  v1::StatisticResult* result = fields->add_results();
  result->set_answers(header.index());
  result->set_layer(header.layer());
  ToProto(error, result->mutable_error());
  return fields;
}

}  // namespace nni_compression::server
