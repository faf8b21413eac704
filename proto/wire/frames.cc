#include "proto/wire/frames.h"

#include <google/protobuf/io/coded_stream.h>

#include <utility>

#include "absl/strings/str_cat.h"

namespace nni_compression::wire {
namespace {

using ::google::protobuf::io::CodedInputStream;
using ::google::protobuf::io::CodedOutputStream;

enum WireType : uint32_t { kVarint = 0, kFixed64 = 1, kLengthDelimited = 2, kFixed32 = 5 };

// Field numbers of Chunk.
enum ChunkField : uint32_t { kIndex = 1, kOffset = 2, kPayload = 3 };

// Deepest nesting inside one field: enough for any options, far from the end of a thread's stack.
constexpr int kMaxRecursion = 32;

constexpr uint32_t Tag(uint32_t field, WireType type) { return field << 3 | type; }
constexpr uint32_t FieldOf(uint32_t tag) { return tag >> 3; }
constexpr uint32_t TypeOf(uint32_t tag) { return tag & 7; }

void AppendVarint(uint64_t value, std::string* out) {
  uint8_t bytes[10];
  const uint8_t* end = CodedOutputStream::WriteVarint64ToArray(value, bytes);
  out->append(reinterpret_cast<const char*>(bytes), end - bytes);
}

void AppendVarintField(uint32_t field, uint64_t value, std::string* out) {
  if (value == 0) return;
  AppendVarint(Tag(field, kVarint), out);
  AppendVarint(value, out);
}

template <typename... Args>
absl::Status Malformed(const Args&... args) {
  return absl::InvalidArgumentError(absl::StrCat("malformed message: ", args...));
}

}  // namespace

void MessageWriter::Append(const google::protobuf::MessageLite& fields) {
  const size_t before = small_.size();
  fields.AppendToString(&small_);
  byte_size_ += small_.size() - before;
}

void MessageWriter::AppendChunk(uint32_t index, uint64_t offset, grpc::Slice payload) {
  std::string prefix;
  AppendVarintField(kIndex, index, &prefix);
  AppendVarintField(kOffset, offset, &prefix);
  AppendVarint(Tag(kPayload, kLengthDelimited), &prefix);
  AppendVarint(payload.size(), &prefix);

  const size_t before = small_.size();
  AppendVarint(Tag(kChunk, kLengthDelimited), &small_);
  AppendVarint(prefix.size() + payload.size(), &small_);
  small_ += prefix;
  byte_size_ += small_.size() - before + payload.size();
  if (payload.size() <= kInlineBytes) {
    small_.append(reinterpret_cast<const char*>(payload.begin()), payload.size());
    return;
  }
  FlushSmall();
  slices_.push_back(std::move(payload));
}

grpc::ByteBuffer MessageWriter::Finish() {
  FlushSmall();
  grpc::ByteBuffer message(slices_.data(), slices_.size());
  slices_.clear();
  byte_size_ = 0;
  return message;
}

void MessageWriter::FlushSmall() {
  if (small_.empty()) return;
  slices_.emplace_back(small_);
  small_.clear();
}

MessageReader::MessageReader(const grpc::ByteBuffer& message)
    : message_(message),
      size_(message_.Valid() ? static_cast<int64_t>(message_.Length()) : 0),
      bytes_(&message_),
      input_(&bytes_) {
  input_.SetRecursionLimit(kMaxRecursion);
}

absl::StatusOr<int> MessageReader::Next() {
  if (size_ > kMaxMessageBytes) {
    return Malformed(size_, " bytes; at most ", kMaxMessageBytes, " are allowed");
  }
  tag_ = input_.ReadTag();
  if (tag_ == 0) {
    if (!input_.ConsumedEntireMessage() || Remaining() != 0) {
      return Malformed("bad tag at byte ", input_.CurrentPosition());
    }
    return 0;
  }
  if (FieldOf(tag_) == 0) return Malformed("field number 0");
  return static_cast<int>(FieldOf(tag_));
}

absl::StatusOr<int> MessageReader::ReadLength() {
  if (TypeOf(tag_) != kLengthDelimited) {
    return Malformed("field ", FieldOf(tag_), " has wire type ", TypeOf(tag_), ", not ",
                     static_cast<int>(kLengthDelimited));
  }
  uint64_t length = 0;
  if (!input_.ReadVarint64(&length) || length > static_cast<uint64_t>(Remaining())) {
    return Malformed("field ", FieldOf(tag_), " is truncated");
  }
  return static_cast<int>(length);
}

absl::StatusOr<int> MessageReader::ReadFieldLength() {
  const auto length = ReadLength();
  if (!length.ok() || *length <= kMaxFieldBytes) return length;
  return Malformed("field ", FieldOf(tag_), " has ", *length, " bytes; at most ", kMaxFieldBytes,
                   " are allowed");
}

absl::Status MessageReader::Parse(google::protobuf::MessageLite* message,
                                  absl::FunctionRef<absl::Status(absl::string_view)> admit) {
  const auto length = ReadFieldLength();
  if (!length.ok()) return length.status();
  std::string bytes;
  if (!input_.ReadString(&bytes, *length)) {
    return Malformed("field ", FieldOf(tag_), " is truncated");
  }
  if (absl::Status status = admit(bytes); !status.ok()) return status;
  CodedInputStream field(reinterpret_cast<const uint8_t*>(bytes.data()), *length);
  field.SetRecursionLimit(kMaxRecursion);
  if (!message->ParseFromCodedStream(&field) || !field.ConsumedEntireMessage()) {
    return Malformed("field ", FieldOf(tag_), " is not a valid ", message->GetTypeName());
  }
  return absl::OkStatus();
}

absl::Status MessageReader::Parse(google::protobuf::MessageLite* message) {
  const auto length = ReadFieldLength();
  if (!length.ok()) return length.status();
  const int end = input_.CurrentPosition() + *length;
  const CodedInputStream::Limit limit = input_.PushLimit(*length);
  const bool parsed = message->ParseFromCodedStream(&input_) && input_.ConsumedEntireMessage();
  input_.PopLimit(limit);
  if (!parsed || input_.CurrentPosition() != end) {
    return Malformed("field ", FieldOf(tag_), " is not a valid ", message->GetTypeName());
  }
  return absl::OkStatus();
}

absl::StatusOr<ChunkPrefix> MessageReader::BeginChunk() {
  const auto length = ReadLength();
  if (!length.ok()) return length.status();
  const int end = input_.CurrentPosition() + *length;
  ChunkPrefix prefix;
  while (input_.CurrentPosition() < end) {
    tag_ = input_.ReadTag();
    if (tag_ == Tag(kPayload, kLengthDelimited)) {
      const auto payload = ReadLength();
      if (!payload.ok()) return payload.status();
      if (input_.CurrentPosition() + *payload != end) {
        return Malformed("a chunk's payload is not its last field");
      }
      prefix.payload_bytes = *payload;
      break;
    }
    uint64_t value = 0;
    if (tag_ == Tag(kIndex, kVarint) || tag_ == Tag(kOffset, kVarint)) {
      if (!input_.ReadVarint64(&value)) return Malformed("a chunk is truncated");
      if (FieldOf(tag_) == kOffset) {
        prefix.offset = value;
      } else if (value > UINT32_MAX) {
        return Malformed("a chunk's index is ", value, "; it must be below 2^32");
      } else {
        prefix.index = static_cast<uint32_t>(value);
      }
    } else if (FieldOf(tag_) <= kPayload) {
      return Malformed("a chunk's field ", FieldOf(tag_), " has wire type ", TypeOf(tag_));
    } else if (absl::Status skipped = Skip(); !skipped.ok()) {
      return skipped;
    }
  }
  if (input_.CurrentPosition() + prefix.payload_bytes != end) {
    return Malformed("a chunk is truncated");
  }
  payload_bytes_ = prefix.payload_bytes;
  return prefix;
}

absl::Status MessageReader::ReadPayload(absl::Span<uint8_t> out) {
  if (static_cast<int64_t>(out.size()) != payload_bytes_) {
    return absl::InternalError(
        absl::StrCat("the payload has ", payload_bytes_, " bytes, the destination ", out.size()));
  }
  if (!out.empty() && !input_.ReadRaw(out.data(), static_cast<int>(out.size()))) {
    return Malformed("a payload is truncated");
  }
  payload_bytes_ = 0;
  return absl::OkStatus();
}

absl::Status MessageReader::SkipPayload() {
  if (!input_.Skip(static_cast<int>(payload_bytes_))) return Malformed("a payload is truncated");
  payload_bytes_ = 0;
  return absl::OkStatus();
}

absl::Status MessageReader::Skip() {
  uint64_t varint = 0;
  bool skipped = false;
  switch (TypeOf(tag_)) {
    case kVarint:
      skipped = input_.ReadVarint64(&varint);
      break;
    case kFixed64:
      skipped = Remaining() >= 8 && input_.Skip(8);
      break;
    case kFixed32:
      skipped = Remaining() >= 4 && input_.Skip(4);
      break;
    case kLengthDelimited: {
      const auto length = ReadLength();
      if (!length.ok()) return length.status();
      skipped = input_.Skip(*length);
      break;
    }
    default:  // groups, which are not used here, and invalid wire types
      return Malformed("field ", FieldOf(tag_), " has wire type ", TypeOf(tag_));
  }
  return skipped ? absl::OkStatus() : Malformed("field ", FieldOf(tag_), " is truncated");
}

int64_t MessageReader::Remaining() const { return size_ - input_.CurrentPosition(); }

}  // namespace nni_compression::wire
