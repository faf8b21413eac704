#include "server/limits/parsed_size.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/wire_format_lite.h>
#include <grpcpp/support/proto_buffer_reader.h>

#include "absl/container/flat_hash_map.h"

namespace nni_compression::server {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::MessageFactory;
using google::protobuf::io::CodedInputStream;
using Wire = google::protobuf::internal::WireFormatLite;

// glibc's overhead and rounding per block, on average.
constexpr int64_t kHeapBlock = 16;

// A slot in a repeated field's array, which grows by doubling.
constexpr int64_t kPlace = 16;

constexpr int64_t kString = static_cast<int64_t>(sizeof(std::string)) + kHeapBlock;
constexpr size_t kShortString = 15;  // stored inside the object

// A map's node and its slot in the table.
constexpr int64_t kMapNode = 64;

// Unknown fields are kept, too.
constexpr int64_t kUnknownField = 2 * 16;

class Walk {
 public:
  explicit Walk(CodedInputStream* in) : in_(*in) {}

  // Reads to the end of the message that `type` describes, or to the first parse error.
  int64_t Message(const Descriptor* type, int depth) {
    int64_t bytes = ObjectSize(type);
    while (const uint32_t tag = in_.ReadTag()) {
      const FieldDescriptor* const field = type->FindFieldByNumber(Wire::GetTagFieldNumber(tag));
      if (!Field(field, Wire::GetTagWireType(tag), depth, &bytes)) {
        failed_ = true;
        break;
      }
    }
    return bytes;
  }

 private:
  bool Field(const FieldDescriptor* field, Wire::WireType wire, int depth, int64_t* bytes) {
    uint64_t number = 0;
    uint32_t small = 0;
    uint32_t length = 0;
    switch (wire) {
      case Wire::WIRETYPE_VARINT:
        *bytes += Scalar(field);
        return in_.ReadVarint64(&number);
      case Wire::WIRETYPE_FIXED64:
        *bytes += Scalar(field);
        return in_.ReadLittleEndian64(&number);
      case Wire::WIRETYPE_FIXED32:
        *bytes += Scalar(field);
        return in_.ReadLittleEndian32(&small);
      case Wire::WIRETYPE_LENGTH_DELIMITED:
        return in_.ReadVarint32(&length) && length <= INT32_MAX &&
               Sized(field, length, depth, bytes);
      case Wire::WIRETYPE_START_GROUP:  // not in proto3: kept as an unknown field, with its fields
      case Wire::WIRETYPE_END_GROUP:
        *bytes += kUnknownField + kHeapBlock;
        return depth < kMaxDepth;
    }
    return false;
  }

  static int64_t Scalar(const FieldDescriptor* field) {
    if (field == nullptr) return kUnknownField;
    return field->is_repeated() ? kPlace : 0;
  }

  bool Sized(const FieldDescriptor* field, uint32_t length, int depth, int64_t* bytes) {
    if (field != nullptr && field->type() == FieldDescriptor::TYPE_MESSAGE) {
      if (depth >= kMaxDepth) return false;
      if (field->is_repeated()) *bytes += kPlace;
      const CodedInputStream::Limit limit = in_.PushLimit(static_cast<int>(length));
      *bytes += Message(field->message_type(), depth + 1);
      in_.PopLimit(limit);
      return !failed_;
    }
    const bool text = field == nullptr || field->type() == FieldDescriptor::TYPE_STRING ||
                      field->type() == FieldDescriptor::TYPE_BYTES;
    if (text) {
      *bytes += kPlace + kString + (field == nullptr ? kUnknownField : 0);
      if (length > kShortString) *bytes += static_cast<int64_t>(length) + kHeapBlock;
    } else {
      *bytes += static_cast<int64_t>(length) * kPlace;  // packed: each byte may be a number
    }
    return in_.Skip(static_cast<int>(length));
  }

  int64_t ObjectSize(const Descriptor* type) {
    if (type->options().map_entry()) return kMapNode;
    const auto [found, fresh] = sizes_.try_emplace(type, 0);
    if (fresh) {
      const auto* const object = MessageFactory::generated_factory()->GetPrototype(type);
      found->second = static_cast<int64_t>(object->SpaceUsedLong()) + kHeapBlock;
    }
    return found->second;
  }

  static constexpr int kMaxDepth = 100;  // the parser's limit

  CodedInputStream& in_;
  bool failed_ = false;
  absl::flat_hash_map<const Descriptor*, int64_t> sizes_;
};

}  // namespace

int64_t ParsedSize(const google::protobuf::Message& type, const grpc::ByteBuffer& bytes) {
  grpc::ByteBuffer copy = bytes;  // shares the slices; reading consumes none
  grpc::ProtoBufferReader reader(&copy);
  CodedInputStream in(&reader);
  return Walk(&in).Message(type.GetDescriptor(), 0);
}

int64_t ParsedSize(const google::protobuf::Message& type, absl::string_view bytes) {
  CodedInputStream in(reinterpret_cast<const uint8_t*>(bytes.data()),
                      static_cast<int>(bytes.size()));
  return Walk(&in).Message(type.GetDescriptor(), 0);
}

}  // namespace nni_compression::server
