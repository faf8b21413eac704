// The formats there are: one function for each file of this folder.
#ifndef NNI_COMPRESSION_COMPRESSION_EXPORTERS_FORMATS_H_
#define NNI_COMPRESSION_COMPRESSION_EXPORTERS_FORMATS_H_

#include "compression/exporter.h"

namespace nni_compression::compression {

// Never destroyed.
const Exporter* CompressedTensorsExporter();
const Exporter* MasksExporter();
const Exporter* OnnxExporter();
const Exporter* PthExporter();
const Exporter* ReportExporter();
const Exporter* SafetensorsExporter();
const Exporter* SparseExporter();

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_EXPORTERS_FORMATS_H_
