#include "server/tensors/reply_queue.h"

#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "nni/compression/v1/compression.pb.h"

namespace nni_compression::server {
namespace {

namespace v1 = ::nni::compression::v1;

v1::CalcMaskResponse Parse(const grpc::ByteBuffer& message) {
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(message.Dump(&slices).ok());
  std::string bytes;
  for (const grpc::Slice& slice : slices) {
    bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  v1::CalcMaskResponse response;
  EXPECT_TRUE(response.ParseFromString(bytes));
  return response;
}

Reply MakeReply(uint32_t index, const std::string& text) {
  auto fields = std::make_unique<v1::CalcMaskResponse>();
  fields->add_results()->set_answers(index);
  Payload payload;
  payload.index = index;
  payload.bytes = compression::Buffer::Allocate(static_cast<int64_t>(text.size()));
  std::memcpy(payload.bytes.data(), text.data(), text.size());
  payload.total = text.size();
  Reply reply;
  reply.fields = std::move(fields);
  reply.payloads.push_back(std::move(payload));
  return reply;
}

TEST(ReplyQueueTest, SmallRepliesShareAMessage) {
  ReplyQueue queue;
  queue.Push(MakeReply(0, "abc"));
  queue.Push(MakeReply(1, "de"));
  const v1::CalcMaskResponse response = Parse(queue.NextMessage());
  EXPECT_TRUE(queue.empty());
  ASSERT_EQ(response.results_size(), 2);
  ASSERT_EQ(response.chunks_size(), 2);
  EXPECT_EQ(response.chunks(0).payload(), "abc");
  EXPECT_EQ(response.chunks(1).payload(), "de");
  ASSERT_EQ(response.commits_size(), 2);
  EXPECT_EQ(response.commits(0).byte_length(), 3u);
  EXPECT_FALSE(response.commits(0).has_crc32());
}

TEST(ReplyQueueTest, ALargeReplyTakesSeveralMessagesOfChunksWithoutGap) {
  std::string text(10 << 20, 0);
  for (size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>(i * 31 >> 7);
  ReplyQueue queue;
  queue.Push(MakeReply(5, text));
  queue.Push(MakeReply(6, "next"));
  std::string received;
  std::string next;
  int messages = 0;
  while (!queue.empty()) {
    const grpc::ByteBuffer message = queue.NextMessage();
    ASSERT_LE(message.Length(), static_cast<size_t>(wire::kMaxMessageBytes));
    ++messages;
    const v1::CalcMaskResponse response = Parse(message);
    for (const v1::Chunk& chunk : response.chunks()) {
      if (chunk.index() == 6) {
        next += chunk.payload();
        continue;
      }
      ASSERT_EQ(chunk.offset(), received.size());
      EXPECT_LE(chunk.payload().size(), static_cast<size_t>(wire::kChunkBytes));
      received += chunk.payload();
    }
  }
  EXPECT_EQ(received, text);
  EXPECT_EQ(next, "next");
  EXPECT_GE(messages, 5);
}

TEST(ReplyQueueTest, MemoryGoesBackWhenTheLastMessageIsGone) {
  const auto budget = MemoryBudget::Create(1 << 30, [](std::function<void()> run) { run(); });
  ReplyQueue queue;
  Reply reply = MakeReply(0, std::string(3 << 20, 'x'));
  reply.memory = std::make_shared<Reservation>(*budget->TryReserve(100));
  queue.Push(std::move(reply));
  std::vector<grpc::ByteBuffer> messages;
  while (!queue.empty()) messages.push_back(queue.NextMessage());
  EXPECT_EQ(budget->reserved(), 100);
  messages.erase(messages.begin(), messages.end() - 1);
  EXPECT_EQ(budget->reserved(), 100);
  messages.clear();
  EXPECT_EQ(budget->reserved(), 0);
}

TEST(ReplyQueueTest, ClearStartsAnew) {
  ReplyQueue queue;
  queue.Push(MakeReply(0, std::string(3 << 20, 'x')));
  queue.NextMessage();
  queue.Clear();
  EXPECT_TRUE(queue.empty());
  queue.Push(MakeReply(1, "abc"));
  const v1::CalcMaskResponse response = Parse(queue.NextMessage());
  EXPECT_EQ(response.chunks(0).offset(), 0u);
  EXPECT_EQ(response.chunks(0).payload(), "abc");
}

}  // namespace
}  // namespace nni_compression::server
