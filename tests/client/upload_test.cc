#include "client/cpp/upload.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <zlib.h>

#include <string>
#include <vector>

#include "nni/compression/v1/compression.pb.h"

namespace nni_compression::internal {
namespace {

namespace v1 = ::nni::compression::v1;
using ::testing::HasSubstr;

constexpr int64_t kMebi = 1 << 20;

// Weights of the given numbers of bytes, filled with their index and offset.
class Weights {
 public:
  explicit Weights(const std::vector<int64_t>& sizes) {
    for (const int64_t size : sizes) {
      std::vector<uint8_t> bytes(size);
      for (int64_t i = 0; i < size; ++i) {
        bytes[i] = static_cast<uint8_t>(bytes_.size() * 31 + i % 251);
      }
      bytes_.push_back(std::move(bytes));
    }
    for (const auto& bytes : bytes_) {
      tensors_.push_back({"layer" + std::to_string(tensors_.size()),
                          DataType::kUInt8,
                          {static_cast<int64_t>(bytes.size())},
                          bytes});
    }
  }

  std::vector<const Tensor*> tensors() const {
    std::vector<const Tensor*> pointers;
    for (const Tensor& tensor : tensors_) pointers.push_back(&tensor);
    return pointers;
  }
  const std::vector<uint8_t>& bytes(size_t i) const { return bytes_[i]; }

 private:
  std::vector<std::vector<uint8_t>> bytes_;
  std::vector<Tensor> tensors_;
};

v1::CalcMaskRequest Open() {
  v1::CalcMaskRequest open;
  open.mutable_open()->set_session_id("s");
  return open;
}

v1::CalcMaskRequest Parse(const grpc::ByteBuffer& message) {
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(message.Dump(&slices).ok());
  std::string bytes;
  for (const grpc::Slice& slice : slices) {
    bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  EXPECT_LE(bytes.size(), static_cast<size_t>(wire::kMaxMessageBytes));
  v1::CalcMaskRequest parsed;
  EXPECT_TRUE(parsed.ParseFromString(bytes));
  return parsed;
}

// All messages, checked against the rules of the wire contract.
std::vector<v1::CalcMaskRequest> SendAll(const Weights& weights, Upload::Options options = {}) {
  Loans loans;
  std::vector<v1::CalcMaskRequest> messages;
  {
    Upload upload(Open(), weights.tensors(), options, loans);
    while (!upload.done()) messages.push_back(Parse(upload.NextMessage()));
  }
  EXPECT_TRUE(loans.all_returned());
  std::vector<std::vector<uint8_t>> received(weights.tensors().size());
  size_t announced = 0, committed = 0;
  for (const auto& message : messages) {
    for (const auto& header : message.headers()) {
      EXPECT_EQ(header.index(), announced);
      EXPECT_EQ(header.byte_length(), weights.bytes(announced).size());
      ++announced;
    }
    for (const auto& chunk : message.chunks()) {
      EXPECT_LT(chunk.index(), announced);
      EXPECT_EQ(chunk.offset(), received[chunk.index()].size());
      EXPECT_FALSE(chunk.payload().empty());
      received[chunk.index()].insert(received[chunk.index()].end(), chunk.payload().begin(),
                                     chunk.payload().end());
    }
    for (const auto& commit : message.commits()) {
      EXPECT_EQ(commit.index(), committed);
      EXPECT_EQ(commit.byte_length(), received[committed].size());
      ++committed;
    }
  }
  EXPECT_EQ(committed, received.size());
  for (size_t i = 0; i < received.size(); ++i) EXPECT_EQ(received[i], weights.bytes(i));
  return messages;
}

TEST(UploadTest, ASmallCallIsOneMessage) {
  const auto messages = SendAll(Weights({4, 10, 5000}));
  ASSERT_EQ(messages.size(), 1u);
  EXPECT_EQ(messages[0].open().session_id(), "s");
  EXPECT_EQ(messages[0].headers_size(), 3);
  EXPECT_EQ(messages[0].commits_size(), 3);
}

TEST(UploadTest, ACallWithoutTensorsIsOneMessage) { EXPECT_EQ(SendAll(Weights({})).size(), 1u); }

TEST(UploadTest, ALargeTensorIsCutIntoChunks) {
  const auto messages = SendAll(Weights({3 * kMebi + 5}));
  ASSERT_EQ(messages.size(), 4u);
  EXPECT_EQ(messages[0].chunks(0).payload().size(), static_cast<size_t>(kMebi));
  EXPECT_EQ(messages[3].chunks(0).payload().size(), 5u);
  EXPECT_EQ(messages[3].commits_size(), 1);
}

TEST(UploadTest, ATensorOfExactlyOneChunkIsOneMessage) {
  EXPECT_EQ(SendAll(Weights({kMebi})).size(), 1u);
  EXPECT_EQ(SendAll(Weights({2 * kMebi})).size(), 2u);
}

TEST(UploadTest, NeverLeavesATensorIncompleteWhenAnotherBegins) {
  const auto messages = SendAll(Weights(
      {100, kMebi - 50, 10, 3 * kMebi, 7, 7, 2 * kMebi + 1, kMebi, 1, kMebi / 2, kMebi / 2}));
  std::vector<uint64_t> sizes;
  uint64_t incomplete = 0;
  for (const auto& message : messages) {
    if (message.chunks_size() > 1) {
      EXPECT_EQ(incomplete, 0u);
      EXPECT_EQ(message.chunks_size(), message.commits_size());
    }
    for (const auto& chunk : message.chunks()) incomplete += chunk.payload().size();
    for (const auto& commit : message.commits()) incomplete -= commit.byte_length();
  }
}

TEST(UploadTest, ManyTinyTensorsStayBelowTheMessageLimit) {
  const Weights weights(std::vector<int64_t>(100000, 1));
  EXPECT_GT(SendAll(weights).size(), 1u);
  Upload::Options options;
  options.headers_first = true;
  EXPECT_GT(SendAll(weights, options).size(), 1u);
}

TEST(UploadTest, SendsAllHeadersFirstWhereAsked) {
  Upload::Options options;
  options.headers_first = true;
  const auto messages = SendAll(Weights({2 * kMebi, 5, 2 * kMebi}), options);
  EXPECT_EQ(messages[0].headers_size(), 3);
  EXPECT_EQ(messages[0].chunks_size(), 1);
}

TEST(UploadTest, SendsAChecksumWhereAsked) {
  Upload::Options options;
  options.checksum = true;
  const Weights weights({2 * kMebi + 3});
  const auto messages = SendAll(weights, options);
  const auto& commit = messages.back().commits(0);
  ASSERT_TRUE(commit.has_crc32());
  EXPECT_EQ(commit.crc32(), crc32_z(0, weights.bytes(0).data(), weights.bytes(0).size()));
  EXPECT_FALSE(SendAll(weights).back().commits(0).has_crc32());
}

TEST(UploadTest, AliasesTheTensorsMemory) {
  const Weights weights({2 * kMebi});
  Loans loans;
  {
    Upload upload(Open(), weights.tensors(), {}, loans);
    std::vector<grpc::Slice> slices;
    const grpc::ByteBuffer message = upload.NextMessage();
    ASSERT_TRUE(message.Dump(&slices).ok());
    EXPECT_EQ(slices[1].begin(), weights.bytes(0).data());
    EXPECT_FALSE(loans.all_returned());
  }
  EXPECT_TRUE(loans.all_returned());
}

TEST(CheckTensorTest, NamesTheTensorAndWhatItNeeds) {
  const std::vector<uint8_t> bytes(100);
  const Tensor tensor{"conv1", DataType::kFloat32, {3, 4}, bytes};
  const absl::Status status = CheckTensor(tensor);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(std::string(status.message()),
            "tensor conv1 has 100 bytes; shape [3, 4] of float32 needs 48");
  EXPECT_TRUE(CheckTensor({"m", DataType::kBit, {100, 8}, bytes}).ok());
  EXPECT_THAT(std::string(CheckTensor({"a", DataType::kFloat32, {0}, {}}).message()),
              HasSubstr("shape[0] is 0"));
  EXPECT_FALSE(CheckTensor({"a", DataType::kFloat32, {}, {}}).ok());
  EXPECT_FALSE(
      CheckTensor({"a", DataType::kFloat32, {int64_t{1} << 40, int64_t{1} << 40}, {}}).ok());
}

}  // namespace
}  // namespace nni_compression::internal
