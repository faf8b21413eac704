// A session's memory as bytes.
//
//   record: length of `fields` (8 bytes) | fields (MessagePack) | mask bits | statistics |
//           CRC-32 of all before
//
// Little-endian. `fields` of the global record: version, algorithm, layers, epoch, step, last_step.
// `fields` of a layer's record: version, name, elements, answered, mask (whether mask bits follow),
// parameters, memory (arrays of numbers as byte strings), opaque (a byte string, if not empty) and
// statistics (if any; kind, shape and sources of each). The numbers of statistics follow as
// float64, in the order of the fields.
#ifndef NNI_COMPRESSION_COMPRESSION_SESSION_STATE_H_
#define NNI_COMPRESSION_COMPRESSION_SESSION_STATE_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "compression/algorithms/algorithm.h"

namespace nni_compression::compression {

struct GlobalState {
  std::string algorithm;
  int64_t layers = 0;
  Clock clock;
  int64_t last_step = -1;
};

std::string EncodeGlobal(const GlobalState& state);
std::string EncodeLayer(const Layer& layer, const LayerState& state);

// DATA_LOSS for bytes that the functions above did not write, or wrote for another layer.
absl::StatusOr<GlobalState> DecodeGlobal(absl::string_view record);
absl::StatusOr<LayerState> DecodeLayer(const Layer& layer, absl::string_view record);

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_SESSION_STATE_H_
