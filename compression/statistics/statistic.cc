#include "compression/statistics/statistic.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "compression/messages/suggest.h"

namespace nni_compression::compression {
namespace {

using Merging = StatisticInfo::Merge;
using Shape = StatisticInfo::Shape;

constexpr int kMinExponent = -126;
constexpr int kMaxExponent = 127;

// Makes the bins of a histogram 2^shift times as wide; zero stays between the same two bins.
void Widen(std::vector<double>& bins, int shift) {
  if (shift == 0) return;
  const auto half = static_cast<int64_t>(bins.size() / 2);
  std::vector<double> wide(bins.size());
  for (int64_t bin = -half; bin < half; ++bin) {
    const int64_t to = bin >> std::min(shift, 62);
    wide[static_cast<size_t>(to + half)] += bins[static_cast<size_t>(bin + half)];
  }
  bins = std::move(wide);
}

void MergeInto(const StatisticInfo& info, std::vector<double>& total,
               const std::vector<double>& values) {
  switch (info.merge) {
    case Merging::kSum:
      for (size_t i = 0; i < total.size(); ++i) total[i] += values[i];
      break;
    case Merging::kMaximum:
      for (size_t i = 0; i < total.size(); ++i) total[i] = std::max(total[i], values[i]);
      break;
    case Merging::kReplace:
      total = values;
      break;
    case Merging::kRange:
      total[0] = std::min(total[0], values[0]);
      total[1] = std::max(total[1], values[1]);
      break;
  }
}

std::vector<double> ToDouble(const StatisticPart& part) {
  const int64_t n = part.bytes.size() / ByteLength(part.dtype, 1);
  std::vector<double> values(static_cast<size_t>(n));
  if (part.dtype == DataType::kFloat64) {
    std::memcpy(values.data(), part.bytes.data(), static_cast<size_t>(part.bytes.size()));
  } else {
    const auto* const from = reinterpret_cast<const float*>(part.bytes.data());
    std::copy(from, from + n, values.begin());
  }
  return values;
}

// Whether a second moment of so many inputs is sent whole, not as a packed triangle.
bool IsFull(const std::vector<int64_t>& shape, int64_t inputs) {
  return shape.back() == inputs && !(shape.size() == 1 && inputs == 1);
}

// Where a second moment's diagonal may be, for its size I, element by element.
bool IsDiagonal(const std::vector<int64_t>& shape, int64_t inputs, int64_t i) {
  if (IsFull(shape, inputs)) return i / inputs % inputs == i % inputs;
  i %= shape.back();
  // Row r of a packed triangle ends with its diagonal, at r (r + 3) / 2.
  const auto row = static_cast<int64_t>((std::sqrt(8.0 * static_cast<double>(i) + 9) - 3) / 2);
  for (int64_t r = std::max<int64_t>(row - 1, 0); r <= row + 1; ++r) {
    if (r * (r + 3) / 2 == i) return true;
  }
  return false;
}

// Checks a part by itself.
class PartCheck {
 public:
  PartCheck(const StatisticInfo& info, const Layer& layer, const StatisticPart& part)
      : info_(info), layer_(layer), part_(part) {}

  absl::Status Fields() const {
    if (part_.source < 0 || part_.source >= kMaxSources) {
      return Invalid("has source ", part_.source, "; it must be in [0, ", kMaxSources - 1, "]");
    }
    if (part_.sequence < 1 || part_.sequence > kMaxSequence) {
      return Invalid("has sequence ", part_.sequence, "; it must be in [1, ", kMaxSequence, "]");
    }
    if (part_.count < 1 || part_.count > kMaxSamples) {
      return Invalid("has count ", part_.count, "; it must be in [1, ", kMaxSamples, "]");
    }
    if (info_.shape != Shape::kBins && part_.exponent != 0) {
      return Invalid("has exponent ", part_.exponent, "; it must be 0, as it is not a histogram");
    }
    if (part_.exponent < kMinExponent || part_.exponent > kMaxExponent) {
      return Invalid("has exponent ", part_.exponent, "; it must be in [", kMinExponent, ", ",
                     kMaxExponent, "]");
    }
    return CheckStatisticShape(info_, layer_, part_.shape);
  }

  absl::Status Values(const std::vector<double>& values) const {
    for (size_t i = 0; i < values.size(); ++i) {
      if (!std::isfinite(values[i])) return BadValue(i, values[i], "must be finite");
      if (values[i] < 0 && !info_.has_negative) return BadValue(i, values[i], "must be at least 0");
    }
    if (info_.merge == Merging::kRange && values[0] > values[1]) {
      return Invalid("is [", Shown(values[0]), ", ", Shown(values[1]),
                     "]; the first number must not be above the second");
    }
    if (info_.shape != Shape::kInputPairs) return absl::OkStatus();
    const int64_t inputs = PlannedShape(info_, layer_)->front();
    for (size_t i = 0; i < values.size(); ++i) {
      if (values[i] < 0 && IsDiagonal(part_.shape, inputs, static_cast<int64_t>(i))) {
        return BadValue(i, values[i], "is on the diagonal and must be at least 0");
      }
    }
    if (!IsFull(part_.shape, inputs)) return absl::OkStatus();
    return Symmetry(values, static_cast<size_t>(inputs));
  }

  // Of a source that has sent parts before; whether this one is the last of them.
  absl::StatusOr<bool> IsRetry(const SourceTotal& before) const {
    if (part_.sequence > before.sequence) return false;
    if (part_.sequence < before.sequence) {
      return Invalid("has sequence ", part_.sequence, " after ", before.sequence, " of source ",
                     part_.source, "; it must be at least ", before.sequence);
    }
    if (part_.digest == before.digest && part_.count == before.last_count &&
        part_.exponent == before.last_exponent) {
      return true;
    }
    return Invalid("has sequence ", part_.sequence, " of source ", part_.source,
                   ", which another part has had: the same one again must be the same part, and "
                   "another one must have a higher sequence");
  }

  // Of the sums with what was there before.
  absl::Status Sums(int64_t count, const std::vector<double>& values) const {
    if (count > kMaxSamples) {
      return Invalid("has count ", part_.count, ", ", count,
                     " with the parts before; it must be at "
                     "most ",
                     kMaxSamples, " in all");
    }
    for (size_t i = 0; i < values.size(); ++i) {
      if (!std::isfinite(values[i])) return BadValue(i, values[i], "must be finite, added up");
    }
    return absl::OkStatus();
  }

  template <class... Text>
  absl::Status Invalid(const Text&... text) const {
    return absl::InvalidArgumentError(
        absl::StrCat(info_.name, " of layer ", Quoted(layer_.name), " ", text...));
  }

 private:
  // Of each group's matrix.
  absl::Status Symmetry(const std::vector<double>& values, size_t inputs) const {
    // A matrix product may round the two halves differently; no entry is above the root of its two
    // on the diagonal.
    constexpr double kRounding = 1e-3;
    for (size_t group = 0; group < values.size(); group += inputs * inputs) {
      const double* const matrix = values.data() + group;
      for (size_t row = 1; row < inputs; ++row) {
        for (size_t column = 0; column < row; ++column) {
          const size_t i = row * inputs + column;
          const double other = matrix[column * inputs + row];
          const double scale =
              std::sqrt(matrix[row * (inputs + 1)]) * std::sqrt(matrix[column * (inputs + 1)]);
          if (std::abs(matrix[i] - other) <= kRounding * scale) continue;
          return BadValue(group + i, matrix[i],
                          absl::StrCat("must be as on the other side of the diagonal, where it is ",
                                       Shown(other)));
        }
      }
    }
    return absl::OkStatus();
  }

  absl::Status BadValue(size_t i, double value, absl::string_view must) const {
    return Invalid("has ", Shown(value), " at flat index ", i, "; it ", must);
  }

  const StatisticInfo& info_;
  const Layer& layer_;
  const StatisticPart& part_;
};

}  // namespace

int64_t Statistic::count() const {
  int64_t count = 0;
  for (const auto& [source, total] : sources) count += total->count;
  return count;
}

int64_t Statistic::elements() const {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
}

int64_t Statistic::bytes() const {
  // Of map nodes, handles and digests.
  constexpr int64_t kOwn = 256;
  constexpr int64_t kPerSource = 320;
  return kOwn + static_cast<int64_t>(sources.size()) *
                    (kPerSource + elements() * static_cast<int64_t>(sizeof(double)));
}

absl::StatusOr<AddedPart> AddPart(const StatisticInfo& info, const Layer& layer,
                                  const std::shared_ptr<const Statistic>& before,
                                  const StatisticPart& part) {
  const PartCheck check(info, layer, part);
  if (absl::Status status = check.Fields(); !status.ok()) return status;
  const int source = static_cast<int>(part.source);
  std::shared_ptr<const SourceTotal> last;
  if (before != nullptr) {
    if (const auto it = before->sources.find(source); it != before->sources.end()) {
      last = it->second;
      const absl::StatusOr<bool> retry = check.IsRetry(*last);
      if (!retry.ok()) return retry.status();
      if (*retry) return AddedPart{before, true};
    }
    if (part.shape != before->shape) {
      return check.Invalid("has shape [", absl::StrJoin(part.shape, ", "),
                           "]; it must be that of the parts before, [",
                           absl::StrJoin(before->shape, ", "), "]");
    }
  }

  auto total = std::make_shared<SourceTotal>();
  total->values = ToDouble(part);
  if (absl::Status status = check.Values(total->values); !status.ok()) return status;
  total->sequence = part.sequence;
  total->digest = part.digest;
  total->count = total->last_count = part.count;
  total->exponent = total->last_exponent = part.exponent;
  if (last != nullptr) {
    // A copy, as others may have the one before.
    std::vector<double> sum = last->values;
    total->exponent = std::max(last->exponent, part.exponent);
    Widen(sum, total->exponent - last->exponent);
    Widen(total->values, total->exponent - part.exponent);
    MergeInto(info, sum, total->values);
    total->values = std::move(sum);
    total->count += last->count;
  }
  if (absl::Status status = check.Sums(total->count, total->values); !status.ok()) return status;

  auto statistic =
      before == nullptr ? std::make_shared<Statistic>() : std::make_shared<Statistic>(*before);
  statistic->shape = part.shape;
  statistic->sources[source] = std::move(total);
  return AddedPart{std::move(statistic), false};
}

StatisticTotal Merge(const StatisticInfo& info, const Statistic& statistic) {
  StatisticTotal total;
  for (const auto& [source, of_source] : statistic.sources) {
    if (total.values.empty()) {
      total = {of_source->count, of_source->exponent, of_source->values};
      continue;
    }
    total.count += of_source->count;
    const int exponent = std::max(total.exponent, of_source->exponent);
    Widen(total.values, exponent - total.exponent);
    total.exponent = exponent;
    if (of_source->exponent == exponent) {
      MergeInto(info, total.values, of_source->values);
    } else {
      std::vector<double> values = of_source->values;
      Widen(values, exponent - of_source->exponent);
      MergeInto(info, total.values, values);
    }
  }
  return total;
}

absl::Status MissingStatistic(const StatisticInfo& info, const Layer& layer,
                              absl::string_view user) {
  return absl::FailedPreconditionError(absl::StrCat("layer ", Quoted(layer.name), " has no ",
                                                    info.name, " yet, which ", user,
                                                    " needs: send it with AddStatistics"));
}

absl::StatusOr<StatisticTotal> TotalOf(StatisticKind kind, const Layer& layer,
                                       const Statistics& statistics, absl::string_view user) {
  const StatisticInfo& info = *FindStatistic(static_cast<int>(kind));
  const auto known = statistics.find(kind);
  if (known == statistics.end()) return MissingStatistic(info, layer, user);
  return Merge(info, *known->second);
}

}  // namespace nni_compression::compression
