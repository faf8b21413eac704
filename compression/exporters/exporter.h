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

// A stretch of a file, produced when the stream gets there, so that no file is ever whole in
// memory.
struct Segment {
  int64_t byte_length = 0;
  int64_t memory = 0;  // bytes that it holds, until the file is complete, beside itself

  // Either bytes computed from the session: writes the segment's [offset, offset + out.size()).
  std::function<void(int64_t offset, absl::Span<uint8_t> out)> fill;

  // Or a tensor of the client: index in the tensors given, and what is done to its bytes before
  // they are sent, in place or by putting another buffer there, which has the segment's length;
  // unset: nothing. Segments use the tensors in their order, each once. Segments are produced in
  // their order too, so a later one's `fill` may tell what an earlier one's `transform` has found.
  std::optional<int> tensor;
  std::function<absl::Status(Buffer& bytes)> transform;

  // Makes the segment's bytes of the tensor's: `transform`, and what it leaves must have the
  // segment's length, or else the next tensor would take its place: INTERNAL.
  absl::Status Apply(Buffer& bytes) const;
};

// Asked now and then whether the caller has lost interest; cheap.
using Cancelled = absl::FunctionRef<bool()>;
inline bool NeverCancelled() { return false; }

class ExportFile {
 public:
  // `name` is plain, without directories.
  ExportFile(std::string name, std::string media_type)
      : name_(std::move(name)), media_type_(std::move(media_type)) {}

  void Add(Segment segment);

  // For whoever is going to read the file.
  void Warn(std::vector<std::string> warnings) { warnings_ = std::move(warnings); }

  const std::string& name() const { return name_; }
  const std::string& media_type() const { return media_type_; }
  const std::vector<Segment>& segments() const { return segments_; }
  const std::vector<std::string>& warnings() const { return warnings_; }
  int64_t byte_length() const { return byte_length_; }
  int64_t memory() const { return memory_; }  // that the segments take

 private:
  std::string name_;
  std::string media_type_;
  std::vector<Segment> segments_;
  std::vector<std::string> warnings_;
  int64_t byte_length_ = 0;
  int64_t memory_ = 0;
};

// What an export consists of: files that are streamed while the tensors come, or files that are
// made of what was found in all of them.
struct ExportPlan {
  std::vector<ExportFile> files;

  // What `observe` and `conclude` keep until the end, at most.
  int64_t memory = 0;

  // When set, no file of `files` has segments that are tensors: `observe` gets the tensors in their
  // order, and then `conclude` says which files follow.
  std::function<absl::Status(int tensor, const Buffer& bytes)> observe;
  std::function<absl::StatusOr<std::vector<ExportFile>>()> conclude;

  // All that the plan takes until its last byte is produced.
  int64_t memory_needed() const;
};

// One format. Stateless, hence thread-safe; the files that it plans own all that they need
// (masks are shared, not copied), so the session may move on while they are streamed. What a weight
// becomes is asked of a LayerSnapshot: nothing here calls an algorithm.
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

// INVALID_ARGUMENT, with the formats there are, for another name.
absl::StatusOr<const Exporter*> FindExporter(absl::string_view format);

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_EXPORTERS_EXPORTER_H_
