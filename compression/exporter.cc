#include "compression/exporter.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "compression/exporters/formats.h"
#include "compression/suggest.h"

namespace nni_compression::compression {

int64_t ExportFile::byte_length() const {
  int64_t total = 0;
  for (const Segment& segment : segments) total += segment.byte_length;
  return total;
}

absl::StatusOr<const Exporter*> FindExporter(absl::string_view format) {
  static const auto* exporters = new std::vector<const Exporter*>{
      CompressedTensorsExporter(), MasksExporter(), OnnxExporter(), PthExporter(), ReportExporter(),
      SafetensorsExporter(),       SparseExporter()};
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
