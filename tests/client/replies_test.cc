#include "client/cpp/replies.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <zlib.h>

#include <functional>
#include <string>
#include <vector>

#include "client/cpp/export.h"

namespace nni_compression::internal {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

grpc::ByteBuffer Message(const google::protobuf::MessageLite& message) {
  const grpc::Slice slice(message.SerializeAsString());
  return grpc::ByteBuffer(&slice, 1);
}

// A good answer to a weight of 3 x 5, to be spoiled by tests.
v1::CalcMaskResponse GoodMask() {
  v1::CalcMaskResponse message;
  v1::MaskResult* result = message.add_results();
  result->set_layer("conv");
  result->set_target_sparsity(0.8);
  result->set_epoch(3);
  v1::TensorHeader* header = message.add_headers();
  header->set_role(v1::TENSOR_ROLE_MASK);
  header->set_dtype(v1::DATA_TYPE_BIT);
  header->add_shape(3);
  header->add_shape(5);
  header->set_byte_length(2);
  message.add_chunks()->set_payload("\x81\x40");
  message.add_commits()->set_byte_length(2);
  return message;
}

class MaskReaderTest : public ::testing::Test {
 protected:
  absl::Status Read(const std::vector<v1::CalcMaskResponse>& messages) {
    results_.assign(1, std::nullopt);
    MaskReader reader(sent_, results_);
    for (const auto& message : messages) {
      absl::Status status = reader.Read(Message(message));
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }

  void ExpectBad(const std::function<void(v1::CalcMaskResponse&)>& spoil, const std::string& why) {
    v1::CalcMaskResponse message = GoodMask();
    spoil(message);
    const absl::Status status = Read({message});
    EXPECT_EQ(status.code(), absl::StatusCode::kInternal) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(why));
    EXPECT_FALSE(results_[0].has_value());
  }

  const std::vector<uint8_t> bytes_ = std::vector<uint8_t>(60);
  const Tensor tensor_{"conv", DataType::kFloat32, {3, 5}, bytes_};
  const std::vector<const Tensor*> sent_ = {&tensor_};
  std::vector<std::optional<absl::StatusOr<Mask>>> results_;
};

TEST_F(MaskReaderTest, PutsAMaskTogether) {
  ASSERT_TRUE(Read({GoodMask()}).ok());
  const Mask& mask = **results_[0];
  EXPECT_EQ(mask.layer(), "conv");
  EXPECT_EQ(mask.pruned(), 12);
  EXPECT_EQ(mask.epoch(), 3);
  EXPECT_DOUBLE_EQ(mask.target_sparsity(), 0.8);
}

TEST_F(MaskReaderTest, PutsAMaskTogetherFromPieces) {
  const v1::CalcMaskResponse good = GoodMask();
  std::vector<v1::CalcMaskResponse> pieces(5);
  *pieces[0].mutable_results() = good.results();
  *pieces[1].mutable_headers() = good.headers();
  pieces[2].add_chunks()->set_payload("\x81");
  pieces[3].add_chunks()->set_payload("\x40");
  pieces[3].mutable_chunks(0)->set_offset(1);
  *pieces[4].mutable_commits() = good.commits();
  ASSERT_TRUE(Read(pieces).ok());
  EXPECT_EQ((*results_[0])->pruned(), 12);
}

TEST_F(MaskReaderTest, KeepsALayersError) {
  v1::CalcMaskResponse message;
  message.add_results()->mutable_error()->set_code(static_cast<int>(absl::StatusCode::kNotFound));
  ASSERT_TRUE(Read({message}).ok());
  EXPECT_EQ(results_[0]->status().code(), absl::StatusCode::kNotFound);
}

TEST_F(MaskReaderTest, ChecksTheChecksumThatIsThere) {
  v1::CalcMaskResponse message = GoodMask();
  message.mutable_commits(0)->set_crc32(crc32(0, reinterpret_cast<const Bytef*>("\x81\x40"), 2));
  EXPECT_TRUE(Read({message}).ok());
  message.mutable_commits(0)->set_crc32(1);
  EXPECT_EQ(Read({message}).code(), absl::StatusCode::kDataLoss);
}

TEST_F(MaskReaderTest, RefusesAnswersToWhatWasNotSent) {
  ExpectBad([](auto& m) { m.mutable_results(0)->set_answers(1); }, "a result for tensor 1");
  ExpectBad([](auto& m) { m.mutable_headers(0)->set_answers(7); }, "a tensor answers 7");
  ExpectBad([](auto& m) { m.mutable_chunks(0)->set_index(1); }, "a chunk of tensor 1");
  ExpectBad([](auto& m) { m.mutable_commits(0)->set_index(1); }, "a commit of tensor 1");
  ExpectBad([](auto& m) { *m.add_results() = m.results(0); }, "a result for tensor 0");
  ExpectBad([](auto& m) { *m.add_headers() = m.headers(0); }, "more tensors than announced");
}

TEST_F(MaskReaderTest, RefusesASecondAnswer) {
  const absl::Status status = Read({GoodMask(), GoodMask()});
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
}

TEST_F(MaskReaderTest, RefusesAMaskOfAnotherShape) {
  ExpectBad([](auto& m) { m.mutable_headers(0)->set_shape(0, 5); }, "byte length");
  ExpectBad(
      [](auto& m) {
        m.mutable_headers(0)->set_shape(0, 5);
        m.mutable_headers(0)->set_shape(1, 3);
      },
      "does not have its weight's shape");
  ExpectBad([](auto& m) { m.mutable_headers(0)->set_role(v1::TENSOR_ROLE_CODES); }, "shape");
}

TEST_F(MaskReaderTest, TakesNoMemoryForAnAnnouncedTebibyte) {
  ExpectBad(
      [](auto& m) {
        m.mutable_headers(0)->set_shape(0, int64_t{1} << 43);
        m.mutable_headers(0)->set_shape(1, 1);
        m.mutable_headers(0)->set_byte_length(uint64_t{1} << 40);
      },
      "shape");
}

TEST_F(MaskReaderTest, RefusesChunksThatDoNotFit) {
  ExpectBad([](auto& m) { m.mutable_chunks(0)->set_offset(1); }, "a chunk is at 1, not at 0");
  ExpectBad([](auto& m) { m.mutable_chunks(0)->set_payload("abc"); }, "past the end");
  ExpectBad([](auto& m) { m.mutable_chunks(0)->set_payload(""); }, "an empty chunk");
  ExpectBad([](auto& m) { m.mutable_chunks(0)->set_payload("a"); }, "1 arrived");
  ExpectBad([](auto& m) { m.mutable_commits(0)->set_byte_length(3); }, "a commit of 3 bytes");
  ExpectBad([](auto& m) { m.mutable_chunks(0)->set_payload("\x81\xff"); },
            "after its last element");
}

TEST_F(MaskReaderTest, RefusesAnErrorWithoutACode) {
  v1::CalcMaskResponse message;
  message.add_results()->mutable_error()->set_message("?");
  ASSERT_TRUE(Read({message}).ok());
  EXPECT_EQ(results_[0]->status().code(), absl::StatusCode::kInternal);
}

// A good per-channel answer to a weight of 2 x 3.
v1::QuantizeWeightResponse GoodCodes() {
  v1::QuantizeWeightResponse message;
  v1::QuantizeResult* result = message.add_results();
  result->set_layer("fc");
  result->set_tensors(3);
  result->mutable_parameters()->set_formula(v1::FORMULA_AFFINE);
  result->mutable_parameters()->set_rounding(v1::ROUNDING_HALF_EVEN);
  result->mutable_parameters()->set_bits(8);
  result->mutable_parameters()->set_channel_axis(0);
  const auto add = [&](v1::TensorRole role, v1::DataType dtype, std::vector<int64_t> shape,
                       const std::string& payload) {
    const auto index = static_cast<uint32_t>(message.headers_size());
    v1::TensorHeader* header = message.add_headers();
    header->set_index(index);
    header->set_role(role);
    header->set_dtype(dtype);
    for (const int64_t dimension : shape) header->add_shape(dimension);
    header->set_byte_length(payload.size());
    v1::Chunk* chunk = message.add_chunks();
    chunk->set_index(index);
    chunk->set_payload(payload);
    v1::Commit* commit = message.add_commits();
    commit->set_index(index);
    commit->set_byte_length(payload.size());
  };
  add(v1::TENSOR_ROLE_CODES, v1::DATA_TYPE_UINT8, {2, 3}, std::string("\1\2\3\4\5\6"));
  add(v1::TENSOR_ROLE_SCALE, v1::DATA_TYPE_FLOAT32, {2}, std::string("\0\0\x80\x3f\0\0\0\x40", 8));
  add(v1::TENSOR_ROLE_ZERO_POINT, v1::DATA_TYPE_INT32, {2}, std::string("\0\0\0\0\1\0\0\0", 8));
  return message;
}

class QuantizeReaderTest : public ::testing::Test {
 protected:
  absl::Status Read(const v1::QuantizeWeightResponse& message,
                    QuantizeReply reply = QuantizeReply::kCodes) {
    results_.assign(1, std::nullopt);
    QuantizeReader reader(sent_, reply, results_);
    return reader.Read(Message(message));
  }

  const std::vector<uint8_t> bytes_ = std::vector<uint8_t>(24);
  const Tensor tensor_{"fc", DataType::kFloat32, {2, 3}, bytes_};
  const std::vector<const Tensor*> sent_ = {&tensor_};
  std::vector<std::optional<absl::StatusOr<QuantizedTensor>>> results_;
};

TEST_F(QuantizeReaderTest, PutsCodesScalesAndZeroPointsTogether) {
  const absl::Status status = Read(GoodCodes());
  ASSERT_TRUE(status.ok()) << status;
  const QuantizedTensor& tensor = **results_[0];
  EXPECT_THAT(tensor.parameters.scale, ElementsAre(1.0f, 2.0f));
  EXPECT_THAT(tensor.parameters.zero_point, ElementsAre(0, 1));
  EXPECT_THAT(*tensor.Dequantize(), ElementsAre(1, 2, 3, 6, 8, 10));
}

TEST_F(QuantizeReaderTest, ReadsScalesOfGroups) {
  v1::QuantizeWeightResponse message = GoodCodes();
  message.mutable_results(0)->mutable_parameters()->set_group_size(3);
  const absl::Status status = Read(message);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ((*results_[0])->parameters.group_size, 3);
  EXPECT_THAT(*(*results_[0])->Dequantize(), ElementsAre(1, 2, 3, 6, 8, 10));
}

TEST_F(QuantizeReaderTest, TakesAnUnquantizedAnswer) {
  v1::QuantizeWeightResponse message;
  message.add_results()->set_unquantized(true);
  ASSERT_TRUE(Read(message).ok());
  EXPECT_TRUE((*results_[0])->unquantized);
}

TEST_F(QuantizeReaderTest, RefusesAnswersThatDequantizeCouldNotUse) {
  const auto expect_bad = [&](const std::function<void(v1::QuantizeWeightResponse&)>& spoil) {
    v1::QuantizeWeightResponse message = GoodCodes();
    spoil(message);
    EXPECT_EQ(Read(message).code(), absl::StatusCode::kInternal) << message.ShortDebugString();
  };
  expect_bad([](auto& m) { m.mutable_results(0)->mutable_parameters()->set_channel_axis(2); });
  expect_bad([](auto& m) { m.mutable_results(0)->mutable_parameters()->set_channel_axis(1); });
  expect_bad([](auto& m) { m.mutable_results(0)->mutable_parameters()->set_group_size(2); });
  expect_bad([](auto& m) { m.mutable_results(0)->mutable_parameters()->set_group_size(4); });
  expect_bad([](auto& m) { m.mutable_results(0)->mutable_parameters()->set_group_size(~0ull); });
  expect_bad([](auto& m) { m.mutable_results(0)->mutable_parameters()->set_bits(0); });
  expect_bad([](auto& m) { m.mutable_results(0)->mutable_parameters()->set_bits(33); });
  expect_bad([](auto& m) { m.mutable_results(0)->mutable_parameters()->clear_formula(); });
  expect_bad([](auto& m) { m.mutable_results(0)->set_tensors(4); });
  expect_bad([](auto& m) { m.mutable_headers(0)->set_dtype(v1::DATA_TYPE_BOOL); });
  expect_bad([](auto& m) { m.mutable_headers(1)->set_dtype(v1::DATA_TYPE_INT32); });
}

TEST_F(QuantizeReaderTest, RefusesAnAnswerInAnotherForm) {
  EXPECT_EQ(Read(GoodCodes(), QuantizeReply::kParameters).code(), absl::StatusCode::kInternal);
}

TEST(CheckFileNameTest, RefusesWhatCouldLeaveTheDirectory) {
  EXPECT_TRUE(CheckFileName("model.safetensors").ok());
  EXPECT_TRUE(CheckFileName("..model").ok());
  for (const std::string& name :
       {std::string(), std::string("."), std::string(".."), std::string("../x"),
        std::string("/etc/x"), std::string("a\\b"), std::string("a\0b", 3), std::string("a\n"),
        std::string(256, 'a')}) {
    EXPECT_FALSE(CheckFileName(name).ok()) << name;
  }
}

}  // namespace
}  // namespace nni_compression::internal
