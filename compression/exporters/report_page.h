#ifndef NNI_COMPRESSION_COMPRESSION_EXPORTERS_REPORT_PAGE_H_
#define NNI_COMPRESSION_COMPRESSION_EXPORTERS_REPORT_PAGE_H_

#include <nlohmann/json.hpp>
#include <string>

namespace nni_compression::compression {

// One HTML page that shows a report and needs nothing else: no network, no other file.
std::string ReportPage(const nlohmann::json& report);

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_EXPORTERS_REPORT_PAGE_H_
