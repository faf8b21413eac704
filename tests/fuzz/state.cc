// A record of a session's state, as a damaged data directory may hold it. The input is the record
// without its checksum, which no change would get past.
#include "compression/session/state.h"

#include <zlib.h>

#include <string>

#include "tests/fuzz/targets.h"

namespace nni_compression::fuzz {

bool State(absl::Span<const uint8_t> input) {
  std::string record(input.begin(), input.end());
  const auto crc = static_cast<uint32_t>(crc32_z(0, input.data(), input.size()));
  record.append(reinterpret_cast<const char*>(&crc), sizeof(crc));

  const auto global = compression::DecodeGlobal(record);
  if (global.ok()) {
    const std::string written = compression::EncodeGlobal(*global);
    const auto again = compression::DecodeGlobal(written);
    FUZZ_CHECK(again.ok() && compression::EncodeGlobal(*again) == written);
  } else {
    FUZZ_CHECK(global.status().code() == absl::StatusCode::kDataLoss);
  }

  compression::Layer layer;
  layer.name = "conv1";
  layer.shape = {10};
  layer.elements = 10;
  const auto state = compression::DecodeLayer(layer, record);
  if (state.ok()) {
    const std::string written = compression::EncodeLayer(layer, *state);
    const auto again = compression::DecodeLayer(layer, written);
    FUZZ_CHECK(again.ok() && compression::EncodeLayer(layer, *again) == written);
  } else {
    FUZZ_CHECK(state.status().code() == absl::StatusCode::kDataLoss);
  }
  return global.ok() || state.ok();
}

}  // namespace nni_compression::fuzz
