#ifndef NNI_COMPRESSION_COMPRESSION_EXPORTERS_REPORT_PAGE_H_
#define NNI_COMPRESSION_COMPRESSION_EXPORTERS_REPORT_PAGE_H_

#include "compression/exporters/exporter.h"

namespace nni_compression::compression {

// A self-contained HTML page that shows a report. `report` is its JSON, without a "<".
ExportFile ReportPage(Segment report);

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_EXPORTERS_REPORT_PAGE_H_
