// The header of a .safetensors file (https://huggingface.co/docs/safetensors):
//
//   length of the header (8 bytes, little-endian) | header (JSON, padded with spaces) | tensors
#ifndef NNI_COMPRESSION_COMPRESSION_EXPORTERS_SAFETENSORS_HEADER_H_
#define NNI_COMPRESSION_COMPRESSION_EXPORTERS_SAFETENSORS_HEADER_H_

#include <map>
#include <string>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "compression/exporters/exporter.h"

namespace nni_compression::compression {

// Length and header of a file with these tensors in order; the data begins at a multiple of 8.
// INVALID_ARGUMENT for names that are empty, not plain UTF-8, duplicate or reserved, and for
// element types that the format lacks (kBit).
absl::StatusOr<std::string> SafetensorsHeader(absl::Span<const ExportTensor> tensors,
                                              const std::map<std::string, std::string>& metadata);

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_EXPORTERS_SAFETENSORS_HEADER_H_
