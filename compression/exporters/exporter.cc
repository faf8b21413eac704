#include "compression/exporters/exporter.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "compression/messages/suggest.h"

namespace nni_compression::compression {

// One line for each format, in alphabetical order: the function that gives its exporter, which
// lives forever.
#define NNI_COMPRESSION_EXPORTERS(EXPORTER) \
  EXPORTER(CompressedTensors)               \
  EXPORTER(Masks)                           \
  EXPORTER(Onnx)                            \
  EXPORTER(Pth)                             \
  EXPORTER(Report)                          \
  EXPORTER(Safetensors)                     \
  EXPORTER(Sparse)

#define NNI_COMPRESSION_DECLARE(name) const Exporter* name##Exporter();
NNI_COMPRESSION_EXPORTERS(NNI_COMPRESSION_DECLARE)
#undef NNI_COMPRESSION_DECLARE

namespace {

// Memory of a segment, its functions and their captures.
constexpr int64_t kSegmentBytes = 320;

}  // namespace

absl::Status Segment::Apply(Buffer& bytes) const {
  if (transform) {
    if (absl::Status status = transform(bytes); !status.ok()) return status;
  }
  if (bytes.size() == byte_length) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("a tensor became ", bytes.size(),
                                          " bytes of the file; it must be ", byte_length));
}

void ExportFile::Add(Segment segment) {
  byte_length_ += segment.byte_length;
  memory_ += kSegmentBytes + segment.memory;
  segments_.push_back(std::move(segment));
}

int64_t ExportPlan::memory_needed() const {
  int64_t bytes = memory;
  for (const ExportFile& file : files) bytes += file.memory();
  return bytes;
}

absl::StatusOr<const Exporter*> FindExporter(absl::string_view format) {
#define NNI_COMPRESSION_LIST(name) name##Exporter(),
  static const auto* exporters =
      new std::vector<const Exporter*>{NNI_COMPRESSION_EXPORTERS(NNI_COMPRESSION_LIST)};
#undef NNI_COMPRESSION_LIST
  std::vector<std::string> formats;
  for (const Exporter* exporter : *exporters) {
    if (exporter->format() == format) return exporter;
    formats.emplace_back(exporter->format());
  }
  return absl::InvalidArgumentError(
      absl::StrCat("format is ", Quoted(format), "; it must be one of ",
                   absl::StrJoin(formats, ", "), Suggestion(format, formats)));
}

}  // namespace nni_compression::compression
