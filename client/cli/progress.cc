#include "client/cli/progress.h"

#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "client/cli/format.h"

namespace nni_compression::cli {
namespace {

constexpr int kWidth = 30;
constexpr absl::Duration kInterval = absl::Milliseconds(100);
constexpr char kEraseLine[] = "\r\033[K";

}  // namespace

std::string ProgressLine(const std::string& label, int64_t done_bytes, int64_t total_bytes) {
  const double share =
      total_bytes > 0 ? std::min(1.0, static_cast<double>(done_bytes) / total_bytes) : 1.0;
  const int filled = static_cast<int>(share * kWidth);
  return absl::StrFormat("%s  [%s%s] %3d %%  %s of %s", label, std::string(filled, '#'),
                         std::string(kWidth - filled, ' '), static_cast<int>(share * 100),
                         FormatBytes(done_bytes), FormatBytes(total_bytes));
}

ProgressBar::ProgressBar(std::FILE* stream, std::string label)
    : stream_(stream != nullptr && isatty(fileno(stream)) ? stream : nullptr),
      label_(std::move(label)) {}

ProgressBar::~ProgressBar() {
  if (stream_ != nullptr && next_ != absl::InfinitePast()) {
    std::fputs(kEraseLine, stream_);
    std::fflush(stream_);
  }
}

void ProgressBar::Update(int64_t done_bytes, int64_t total_bytes) {
  if (stream_ == nullptr) return;
  const absl::Time now = absl::Now();
  if (now < next_) return;
  next_ = now + kInterval;
  std::fputs(absl::StrCat(kEraseLine, ProgressLine(label_, done_bytes, total_bytes)).c_str(),
             stream_);
  std::fflush(stream_);
}

}  // namespace nni_compression::cli
