// Conversion between wire messages and the compression library's types.
#ifndef NNI_COMPRESSION_SERVER_CONVERT_CONVERT_H_
#define NNI_COMPRESSION_SERVER_CONVERT_CONVERT_H_

#include <google/protobuf/duration.pb.h>
#include <google/protobuf/timestamp.pb.h>

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "compression/algorithms/algorithm.h"
#include "compression/session/session.h"
#include "compression/statistics/statistic.h"
#include "compression/types/buffer.h"
#include "compression/types/layer.h"
#include "compression/types/quantization.h"
#include "nni/compression/v1/compression.pb.h"

namespace nni_compression::server {

// INVALID_ARGUMENT, naming `field`, for an unknown value.
absl::StatusOr<compression::DataType> ToDataType(nni::compression::v1::DataType dtype,
                                                 absl::string_view field);
nni::compression::v1::DataType ToProto(compression::DataType dtype);

// INVALID_ARGUMENT for what the compression library's types cannot hold; Session::Bind checks the
// rest.
absl::StatusOr<compression::Binding> ToBinding(
    const nni::compression::v1::BindModelRequest& request);

// INVALID_ARGUMENT, naming what differs, unless a tensor has the expected dtype and shape and the
// byte length that follows from them.
absl::Status CheckTensor(const nni::compression::v1::TensorHeader& header,
                         compression::DataType dtype, absl::Span<const int64_t> shape);

// INVALID_ARGUMENT unless a tensor may have the counts of a weight of this dtype.
absl::Status CheckCounts(const nni::compression::v1::TensorHeader& header,
                         compression::DataType dtype);

// The payload of a counts tensor. INVALID_ARGUMENT when it is not a MagnitudeCounts. Takes at most
// kCountsFactor times the memory of the payload.
constexpr int64_t kCountsFactor = 48;
absl::StatusOr<std::vector<compression::CountsRound>> ToCounts(
    const nni::compression::v1::TensorHeader& header, const compression::Buffer& bytes);

// INVALID_ARGUMENT, naming what is wrong, unless a tensor may be a part of a statistic of the
// layer.
absl::Status CheckStatistic(const nni::compression::v1::TensorHeader& header,
                            const compression::Layer& layer);

// A tensor that passed CheckStatistic; `digest` is its SHA-256.
compression::StatisticPart ToStatisticPart(const nni::compression::v1::TensorHeader& header,
                                           compression::Buffer bytes, std::string digest);

// The payload of a range tensor.
compression::Range ToRange(const compression::Buffer& bytes);

// All but scale and zero_point, which a reply has inline or as tensors.
void ToProto(const compression::QuantizationParameters& parameters,
             nni::compression::v1::QuantizationParameters* out);
void ScalesToProto(const compression::QuantizationParameters& parameters,
                   nni::compression::v1::QuantizationParameters* out);

// The algorithm's stored values of a layer (proto Memory).
compression::RememberedNumbers ToMemory(
    const google::protobuf::RepeatedPtrField<nni::compression::v1::Memory>& memory);
void ToProto(const compression::RememberedNumbers& memory,
             google::protobuf::RepeatedPtrField<nni::compression::v1::Memory>* out);

// Why one tensor of a call failed.
void ToProto(const absl::Status& status, nni::compression::v1::LayerError* out);

void ToProto(const compression::Plan& plan, absl::Span<const compression::Layer> layers,
             nni::compression::v1::Plan* out);
void ToProto(const compression::AlgorithmInfo& algorithm, nni::compression::v1::Algorithm* out);

void ToProto(absl::Duration duration, google::protobuf::Duration* out);
void ToProto(absl::Time time, google::protobuf::Timestamp* out);

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_CONVERT_CONVERT_H_
