// Exporters: files that other software opens without this service. A new one is a file in this
// folder with a class that derives from Exporter, and a line in exporter.cc.
#ifndef NNI_COMPRESSION_COMPRESSION_EXPORTERS_EXPORTER_H_
#define NNI_COMPRESSION_COMPRESSION_EXPORTERS_EXPORTER_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "compression/session/session.h"

namespace nni_compression::compression {

// A tensor that the client will send, known by its header.
struct ExportTensor {
  std::string name;
  DataType dtype = DataType::kFloat32;
  std::vector<int64_t> shape;
  int64_t byte_length = 0;
};

// A range of a file, produced when the stream reaches it, so that a file is never in memory as a
// whole.
struct Segment {
  int64_t byte_length = 0;
  int64_t memory = 0;  // bytes that it holds until the file is complete, without itself

  // Either bytes computed from the session: writes the segment's [offset, offset + out.size()).
  std::function<void(int64_t offset, absl::Span<uint8_t> out)> fill;

  // Or a tensor of the client: its index, and a function that changes its bytes before they are
  // sent, in place or by replacing the buffer with one of the segment's length; unset: no change.
  // Segments use the tensors in their order, each once. Segments are also produced in order, so the
  // `fill` of a later one may use results of an earlier `transform`.
  std::optional<int> tensor;
  std::function<absl::Status(Buffer& bytes)> transform;

  // Applies `transform` to the tensor's bytes. INTERNAL unless the result has the segment's length,
  // since the next tensor would fill the gap.
  absl::Status Apply(Buffer& bytes) const;
};

// Polled from time to time for cancellation; cheap.
using Cancelled = absl::FunctionRef<bool()>;
inline bool NeverCancelled() { return false; }

class ExportFile {
 public:
  // `name` is plain, without directories.
  ExportFile(std::string name, std::string media_type)
      : name_(std::move(name)), media_type_(std::move(media_type)) {}

  void Add(Segment segment);

  // Warnings for readers of the file.
  void Warn(std::vector<std::string> warnings) { warnings_ = std::move(warnings); }

  const std::string& name() const { return name_; }
  const std::string& media_type() const { return media_type_; }
  const std::vector<Segment>& segments() const { return segments_; }
  const std::vector<std::string>& warnings() const { return warnings_; }
  int64_t byte_length() const { return byte_length_; }
  int64_t memory() const { return memory_; }  // of the segments

 private:
  std::string name_;
  std::string media_type_;
  std::vector<Segment> segments_;
  std::vector<std::string> warnings_;
  int64_t byte_length_ = 0;
  int64_t memory_ = 0;
};

// The plan of an export: files that are streamed while the tensors are received, or files that
// depend on all of them.
struct ExportPlan {
  std::vector<ExportFile> files;

  // Upper bound of the memory that `observe` and `conclude` keep until the end.
  int64_t memory = 0;

  // If set, no file of `files` has tensor segments: `observe` gets the tensors in order, and then
  // `conclude` returns the files.
  std::function<absl::Status(int tensor, const Buffer& bytes)> observe;
  std::function<absl::StatusOr<std::vector<ExportFile>>()> conclude;

  // Total memory of the plan until its last byte is produced.
  int64_t memory_needed() const;
};

// One format. Stateless, hence thread-safe; the planned files own all that they need (masks are
// shared, not copied), so the session may change while they are streamed. Weights are compressed by
// a LayerSnapshot: nothing here calls an algorithm.
class Exporter {
 public:
  virtual ~Exporter() = default;
  virtual absl::string_view format() const = 0;  // "safetensors"

  // INVALID_ARGUMENT for unknown options and for tensors that do not fit the session;
  // FAILED_PRECONDITION when the session has no result yet for a layer; CANCELLED soon after
  // `cancelled`.
  absl::StatusOr<ExportPlan> Plan(const Session& session, absl::Span<const ExportTensor> tensors,
                                  const nlohmann::json& options,
                                  Cancelled cancelled = NeverCancelled) const {
    return DoPlan(session, tensors, options, cancelled);
  }

 private:
  virtual absl::StatusOr<ExportPlan> DoPlan(const Session& session,
                                            absl::Span<const ExportTensor> tensors,
                                            const nlohmann::json& options,
                                            Cancelled cancelled) const = 0;
};

// INVALID_ARGUMENT, listing the formats, for an unknown name.
absl::StatusOr<const Exporter*> FindExporter(absl::string_view format);

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_EXPORTERS_EXPORTER_H_
