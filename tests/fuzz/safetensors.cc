// A .safetensors file that compressionctl is given.
#include "client/cli/checkpoints/safetensors.h"

#include "tests/fuzz/targets.h"

namespace nni_compression::fuzz {

bool Safetensors(absl::Span<const uint8_t> input) {
  const auto size = static_cast<int64_t>(input.size());
  const auto header = cli::ParseHeader(input, size);
  if (!header.ok()) {
    FUZZ_CHECK(header.status().code() == absl::StatusCode::kInvalidArgument);
    return false;
  }
  int64_t end = 0;
  for (const auto& tensor : header->tensors) {
    FUZZ_CHECK(tensor.begin == end && tensor.end >= tensor.begin);
    end = tensor.end;
  }
  FUZZ_CHECK(header->data_begin + end == size);

  std::string again = cli::SerializeHeader(*header);
  again.resize(again.size() + end);
  const auto reread = cli::ParseHeader(
      {reinterpret_cast<const uint8_t*>(again.data()), again.size()}, int64_t(again.size()));
  FUZZ_CHECK(reread.ok() && reread->tensors.size() == header->tensors.size());
  FUZZ_CHECK(reread->metadata == header->metadata);
  return true;
}

}  // namespace nni_compression::fuzz
