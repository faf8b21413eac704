// Once: one target, from the first answer on.
#include <memory>

#include "compression/schedules/schedule.h"
#include "compression/schedules/time.h"

namespace nni_compression::compression {
namespace {

class Once : public Schedule {
 public:
  explicit Once(double sparsity) : sparsity_(sparsity) {}

  double Target(int64_t) const override { return sparsity_; }
  double Final() const override { return sparsity_; }
  bool changes() const override { return false; }

 private:
  const double sparsity_;
};

}  // namespace

ScheduleInfo OnceSchedule() {
  ScheduleInfo info;
  info.name = "once";
  info.formula = "s";
  info.options = {SparsityOption("sparsity", nullptr, "Share of weights to remove.")};
  info.create = [](const Options& options) {
    return std::make_unique<const Once>(options.Number("sparsity"));
  };
  return info;
}

}  // namespace nni_compression::compression
