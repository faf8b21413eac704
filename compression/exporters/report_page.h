#ifndef NNI_COMPRESSION_COMPRESSION_EXPORTERS_REPORT_PAGE_H_
#define NNI_COMPRESSION_COMPRESSION_EXPORTERS_REPORT_PAGE_H_

#include "compression/exporters/exporter.h"

namespace nni_compression::compression {

// One HTML page that shows a report and needs nothing else: no network, no other file. `report` is
// its JSON, without a "<".
ExportFile ReportPage(Segment report);

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_EXPORTERS_REPORT_PAGE_H_
