// Small things that the tests of the library share.
#ifndef NNI_COMPRESSION_TESTS_COMPRESSION_TESTING_H_
#define NNI_COMPRESSION_TESTS_COMPRESSION_TESTING_H_

#include <ATen/core/Tensor.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "compression/kernels/isa.h"
#include "compression/session/session.h"

namespace nni_compression::compression {

inline const absl::Status& StatusOf(const absl::Status& status) { return status; }
template <class T>
const absl::Status& StatusOf(const absl::StatusOr<T>& result) {
  return result.status();
}

// What gtest shows. It would print the value, for which newer Abseil takes PyTorch's operator of
// all vectors, also of elements that have none.
template <class T>
void PrintTo(const absl::StatusOr<T>& result, std::ostream* out) {
  *out << result.status();
}

MATCHER(IsOk, "is OK") {
  *result_listener << StatusOf(arg).ToString();
  return StatusOf(arg).ok();
}

// EXPECT_THAT(result, Fails(absl::StatusCode::kInvalidArgument, HasSubstr("sparsity")));
MATCHER_P2(Fails, code, message, "fails with that code and message") {
  const absl::Status& status = StatusOf(arg);
  *result_listener << status.ToString();
  return status.code() == code &&
         ::testing::ExplainMatchResult(message, std::string(status.message()), result_listener);
}

template <class Message>
auto IsInvalid(Message message) {
  return Fails(absl::StatusCode::kInvalidArgument, message);
}

Layer MakeLayer(std::string name, std::vector<int64_t> shape, DataType dtype = DataType::kFloat32,
                std::string op_type = "Linear");

Binding MakeBinding(std::string algorithm, nlohmann::json config_list, std::vector<Layer> layers);

// The built-in algorithms, and those of the examples of plugins and scripts.
const Registry& AllAlgorithms();

// Binds under AllAlgorithms.
absl::StatusOr<std::unique_ptr<Session>> TryBind(Binding binding);

// As TryBind, of one layer "layer" and one rule; a failure ends the test program.
std::unique_ptr<Session> BindOne(std::string algorithm, nlohmann::json rule,
                                 std::vector<int64_t> shape, DataType dtype = DataType::kFloat32,
                                 int channel_axis = 0);

// A tensor with these values; shape {} means one dimension.
at::Tensor Values(std::vector<double> values, DataType dtype = DataType::kFloat32,
                  std::vector<int64_t> shape = {});

// Normally distributed values, the same for the same seed.
at::Tensor Random(std::vector<int64_t> shape, uint64_t seed, DataType dtype = DataType::kFloat32,
                  double deviation = 1.0);

// Parts of test names: "float32", "avx2".
std::string NameOf(Isa isa);
inline std::string NameOf(DataType dtype, Isa isa) {
  return std::string(DataTypeName(dtype)) + "_" + NameOf(isa);
}

// "0110": 1 = kept.
std::string Bits(const Mask& mask);
Mask MaskOf(const std::string& bits);

// What a trainer counts for the next round of a threshold, and the mask that it makes of a decided
// one. `before` is the mask in force; empty: none.
CountsRound CountRound(const at::Tensor& weight, const std::string& before,
                       const Threshold& threshold);
std::string MaskFrom(const at::Tensor& weight, const std::string& before,
                     const Threshold& threshold);

// The bytes of a tensor, or of a result.
std::string BytesOf(const at::Tensor& tensor);
std::string BytesOf(const Buffer& buffer);

// A part of a statistic, float32 unless `values` are of another type.
StatisticPart PartOf(StatisticKind kind, const at::Tensor& values, uint64_t sequence = 1,
                     int64_t source = 0);

// Adds a part to each statistic that the layer's rule wants and does not have, the same for the
// same layer.
void GiveStatistics(Session& session, int i);

// All of a session's state.
std::string StateOf(const Session& session);

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_TESTS_COMPRESSION_TESTING_H_
