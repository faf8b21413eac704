#include "compression/exporters/report_page.h"

#include <string>
#include <string_view>
#include <utility>

#include "compression/exporters/segments.h"

namespace nni_compression::compression {

extern const std::string_view kReportHtml;  // report.html, embedded by the build

namespace {

constexpr std::string_view kReportPlace = "@REPORT@";

}  // namespace

ExportFile ReportPage(Segment report) {
  const size_t place = kReportHtml.find(kReportPlace);
  ExportFile page("report.html", "text/html");
  page.Add(BytesSegment(std::string(kReportHtml.substr(0, place))));
  page.Add(std::move(report));
  page.Add(BytesSegment(std::string(kReportHtml.substr(place + kReportPlace.size()))));
  return page;
}

}  // namespace nni_compression::compression
