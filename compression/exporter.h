// Exporters: files that other software opens without this service.
#ifndef NNI_COMPRESSION_COMPRESSION_EXPORTER_H_
#define NNI_COMPRESSION_COMPRESSION_EXPORTER_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "compression/session.h"

namespace nni_compression::compression {

// A tensor that the client will send, known by its header.
struct ExportTensor {
  std::string name;
  DataType dtype = DataType::kFloat32;
  std::vector<int64_t> shape;
  int64_t byte_length = 0;
};

// A stretch of a file, produced when the stream gets there, so that no file is ever whole in
// memory.
struct Segment {
  int64_t byte_length = 0;

  // Either bytes computed from the session: writes the segment's [offset, offset + out.size()).
  std::function<void(int64_t offset, absl::Span<uint8_t> out)> fill;

  // Or a tensor of the client: index in the tensors given, and what is done to its bytes before
  // they are sent, in place or by putting another buffer there, which has the segment's length;
  // unset: nothing. Segments use the tensors in their order, each once. Segments are produced in
  // their order too, so a later one's `fill` may tell what an earlier one's `transform` has found.
  std::optional<int> tensor;
  std::function<absl::Status(Buffer& bytes)> transform;
};

struct ExportFile {
  std::string name;  // plain, no directories
  std::string media_type;
  std::vector<Segment> segments;
  std::vector<std::string> warnings = {};  // for whoever is going to read it

  int64_t byte_length() const;
};

// What an export consists of: files that are streamed while the tensors come, or files that are
// made of what was found in all of them.
struct ExportPlan {
  std::vector<ExportFile> files;

  // When set, no file of `files` has segments that are tensors: `observe` gets the tensors in their
  // order, and then `conclude` says which files follow.
  std::function<absl::Status(int tensor, const Buffer& bytes)> observe;
  std::function<absl::StatusOr<std::vector<ExportFile>>()> conclude;
};

// One format. Stateless, hence thread-safe; the files that it plans own all that they need
// (masks are shared, not copied), so the session may move on while they are streamed.
class Exporter {
 public:
  virtual ~Exporter() = default;
  virtual absl::string_view format() const = 0;  // "safetensors"

  // INVALID_ARGUMENT for unknown options and for tensors that do not fit the session;
  // FAILED_PRECONDITION when the session has no result yet for a layer.
  virtual absl::StatusOr<ExportPlan> Plan(const Session& session,
                                          absl::Span<const ExportTensor> tensors,
                                          const nlohmann::json& options) const = 0;
};

// INVALID_ARGUMENT, with the formats there are, for another name.
absl::StatusOr<const Exporter*> FindExporter(absl::string_view format);

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_EXPORTER_H_
