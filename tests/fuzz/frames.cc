// A message of CalcMask's stream, read as the server reads it.
#include "proto/wire/frames.h"

#include <google/protobuf/stubs/logging.h>

#include <algorithm>
#include <optional>

#include "nni/compression/v1/compression.pb.h"
#include "tests/fuzz/targets.h"

namespace nni_compression::fuzz {
namespace {

using ::nni::compression::v1::CalcMaskRequest;

grpc::ByteBuffer Split(absl::Span<const uint8_t> bytes, size_t slice_bytes) {
  std::vector<grpc::Slice> slices;
  for (size_t i = 0; i < bytes.size(); i += slice_bytes) {
    const auto part = bytes.subspan(i, slice_bytes);
    slices.emplace_back(part.data(), part.size());
  }
  return grpc::ByteBuffer(slices.data(), slices.size());
}

absl::Status ReadField(wire::MessageReader& reader, int field, CalcMaskRequest& request) {
  switch (field) {
    case wire::kOpenOrResult:
      return reader.Parse(request.mutable_open());
    case wire::kHeader:
      return reader.Parse(request.add_headers());
    case wire::kCommit:
      return reader.Parse(request.add_commits());
    case wire::kChunk: {
      const auto prefix = reader.BeginChunk();
      if (!prefix.ok()) return prefix.status();
      FUZZ_CHECK(prefix->payload_bytes >= 0 && prefix->payload_bytes <= wire::kMaxMessageBytes);
      std::string payload(prefix->payload_bytes, '\0');
      auto* chunk = request.add_chunks();
      chunk->set_index(prefix->index);
      chunk->set_offset(prefix->offset);
      const auto status =
          reader.ReadPayload({reinterpret_cast<uint8_t*>(payload.data()), payload.size()});
      chunk->set_payload(std::move(payload));
      return status;
    }
    default:
      return reader.Skip();
  }
}

std::optional<std::string> Read(const grpc::ByteBuffer& message) {
  wire::MessageReader reader(message);
  CalcMaskRequest request;
  while (true) {
    const auto field = reader.Next();
    const auto status =
        field.ok() && *field != 0 ? ReadField(reader, *field, request) : field.status();
    if (!status.ok()) {
      FUZZ_CHECK(status.code() == absl::StatusCode::kInvalidArgument);
      return std::nullopt;
    }
    if (*field == 0) return request.SerializeAsString();
  }
}

}  // namespace

bool Frames(absl::Span<const uint8_t> input) {
  google::protobuf::SetLogHandler(nullptr);  // it says a line for every string that is no UTF-8
  const auto whole = Read(Split(input, std::max<size_t>(input.size(), 1)));
  // How the transport has cut the message makes no difference.
  FUZZ_CHECK(whole == Read(Split(input, 3)));
  return whole.has_value();
}

}  // namespace nni_compression::fuzz
