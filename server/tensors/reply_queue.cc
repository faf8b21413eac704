#include "server/tensors/reply_queue.h"

#include <algorithm>
#include <utility>

#include "nni/compression/v1/compression.pb.h"

namespace nni_compression::server {
namespace {

using ::nni::compression::v1::CalcMaskResponse;

// A message is sent once it has this many bytes: larger ones gain no throughput, and the peer can
// process this one while the next is in transit.
constexpr int64_t kTargetBytes = wire::kChunkBytes;

// Upper bound of the fields around a chunk, and of a commit.
constexpr int64_t kFrameBytes = 64;

// Owned by a slice until the transport has sent it.
struct Owner {
  compression::Buffer bytes;
  std::shared_ptr<const Reservation> memory;
};

grpc::Slice Alias(const compression::Buffer& bytes, std::shared_ptr<const Reservation> memory,
                  int64_t offset, int64_t size) {
  auto* owner = new Owner{bytes, std::move(memory)};
  return grpc::Slice(
      bytes.data() + offset, static_cast<size_t>(size),
      [](void* owner) { delete static_cast<Owner*>(owner); }, owner);
}

// The field of commits is the same in all responses.
CalcMaskResponse CommitFrame(uint32_t index, uint64_t total, std::optional<uint32_t> crc32) {
  CalcMaskResponse frame;
  auto* commit = frame.add_commits();
  commit->set_index(index);
  commit->set_byte_length(total);
  if (crc32) commit->set_crc32(*crc32);
  return frame;
}

}  // namespace

void ReplyQueue::Push(Reply reply) {
  for (const Payload& payload : reply.payloads) payload_bytes_ += payload.bytes.size();
  bookkeeping_bytes_ += reply.bookkeeping.bytes();
  replies_.push_back(std::move(reply));
}

void ReplyQueue::Clear() {
  replies_.clear();
  payload_ = 0;
  sent_ = 0;
  payload_bytes_ = 0;
  bookkeeping_bytes_ = 0;
}

grpc::ByteBuffer ReplyQueue::NextMessage() {
  wire::MessageWriter writer;
  Reservation written;  // released at once
  while (!replies_.empty() && writer.byte_size() < kTargetBytes) {
    if (!AppendFirst(writer)) break;
    bookkeeping_bytes_ -= replies_.front().bookkeeping.bytes();
    written.Merge(std::move(replies_.front().bookkeeping));
    replies_.pop_front();
    payload_ = 0;
    sent_ = 0;
  }
  return writer.Finish();
}

bool ReplyQueue::AppendFirst(wire::MessageWriter& writer) {
  Reply& reply = replies_.front();
  if (reply.fields != nullptr) {
    const int64_t size = static_cast<int64_t>(reply.fields->ByteSizeLong());
    if (!writer.empty() && writer.byte_size() + size > wire::kMaxMessageBytes) return false;
    writer.Append(*reply.fields);
    reply.fields = nullptr;
  }
  for (; payload_ < reply.payloads.size(); ++payload_, sent_ = 0) {
    if (!AppendPayload(reply.payloads[payload_], reply.memory, writer)) return false;
  }
  return true;
}

bool ReplyQueue::AppendPayload(const Payload& payload,
                               const std::shared_ptr<const Reservation>& memory,
                               wire::MessageWriter& writer) {
  while (sent_ < payload.bytes.size()) {
    const int64_t room = wire::kMaxMessageBytes - 2 * kFrameBytes - writer.byte_size();
    if (writer.byte_size() >= kTargetBytes || room <= 0) return false;
    const int64_t size = std::min({payload.bytes.size() - sent_, wire::kChunkBytes, room});
    writer.AppendChunk(payload.index, payload.offset + sent_,
                       Alias(payload.bytes, memory, sent_, size));
    sent_ += size;
    payload_bytes_ -= size;
  }
  // The chunk left room for the commit.
  if (payload.offset + payload.bytes.size() == payload.total) {
    writer.Append(CommitFrame(payload.index, payload.total, payload.crc32));
  }
  return true;
}

}  // namespace nni_compression::server
