#include "compression/session/session.h"

#include <zlib.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "compression/messages/suggest.h"
#include "compression/session/check_answer.h"
#include "compression/session/layer_index.h"

namespace nni_compression::compression {
namespace {

// Consecutive unknown names that get a suggestion.
constexpr int kMaxNamesInARow = 10;

// Bit for bit, since -0.0 may give another answer than 0.0.
bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

// Whether replacing one by the other needs no save.
bool SameState(const LayerState& a, const LayerState& b) {
  const auto same_memory = [](const auto& x, const auto& y) {
    return x.first == y.first && SameBits(x.second, y.second);
  };
  return a.answered == b.answered && a.counted == b.counted &&
         a.mask.has_value() == b.mask.has_value() &&
         (!a.mask || a.mask->bits().data() == b.mask->bits().data()) &&
         a.parameters == b.parameters && a.opaque == b.opaque && a.statistics == b.statistics &&
         a.memory.size() == b.memory.size() &&
         std::equal(a.memory.begin(), a.memory.end(), b.memory.begin(), same_memory);
}

// Including the overhead of map nodes and heap blocks.
int64_t RememberedBytes(const LayerState& state) {
  constexpr int64_t kNode = 128;
  constexpr int64_t kBlock = 16;
  int64_t bytes = state.opaque.empty() ? 0 : static_cast<int64_t>(state.opaque.size()) + kBlock;
  for (const auto& [name, values] : state.memory) {
    bytes += kNode + static_cast<int64_t>(name.size() + values.size() * sizeof(float)) + kBlock;
  }
  for (const auto& [kind, statistic] : state.statistics) bytes += kNode + statistic->bytes();
  return bytes;
}

absl::Status CheckRange(const Layer& layer, const Range& range, int64_t channels) {
  const auto minima = static_cast<int64_t>(range.minimum.size());
  const auto maxima = static_cast<int64_t>(range.maximum.size());
  if (minima != channels || maxima != channels) {
    return absl::InvalidArgumentError(absl::StrCat("range of layer ", Quoted(layer.name), " has ",
                                                   minima, " minima and ", maxima,
                                                   " maxima; it must have ", channels, " of each"));
  }
  for (int64_t c = 0; c < channels; ++c) {
    // NaN fails the comparisons, too.
    if (std::isfinite(range.minimum[c]) && std::isfinite(range.maximum[c]) &&
        range.minimum[c] <= range.maximum[c]) {
      continue;
    }
    return absl::InvalidArgumentError(
        absl::StrCat("range of layer ", Quoted(layer.name), ": channel ", c, " has [",
                     Shown(static_cast<double>(range.minimum[c])), ", ",
                     Shown(static_cast<double>(range.maximum[c])),
                     "]; both must be finite and the minimum not above the maximum"));
  }
  return absl::OkStatus();
}

// Whether these numbers are valid in the algorithm's memory.
absl::Status CheckRemembered(const Layer& layer, const Remembered& remembered,
                             const std::vector<float>& values) {
  const bool finite =
      std::all_of(values.begin(), values.end(), [](float value) { return std::isfinite(value); });
  const bool scale = remembered.kind == Remembered::Kind::kScale;
  const bool fits = finite && (scale ? values.size() == 1 && values[0] >= 0
                                     : values.size() == 2 && values[0] <= values[1]);
  if (fits) return absl::OkStatus();
  std::vector<std::string> shown;
  for (size_t i = 0; i < std::min<size_t>(values.size(), 3); ++i) {
    shown.push_back(Shown(static_cast<double>(values[i])));
  }
  if (values.size() > shown.size()) shown.push_back("...");
  return absl::InvalidArgumentError(
      absl::StrCat(Quoted(remembered.name), " of layer ", Quoted(layer.name), " is [",
                   absl::StrJoin(shown, ", "), "]; it must be ",
                   scale ? "one finite number that is not negative"
                         : "two finite numbers, of which the first is not above the second"));
}

bool Observes(const Compressor& compressor, Observation::Kind kind) {
  const std::vector<Observation::Kind>& observes = compressor.traits().observes;
  return std::find(observes.begin(), observes.end(), kind) != observes.end();
}

uint32_t Crc32(absl::Span<const uint64_t> numbers) {
  return static_cast<uint32_t>(
      crc32_z(0, reinterpret_cast<const Bytef*>(numbers.data()), numbers.size() * 8));
}

uint32_t Checksum(const CountsRound& round) {
  std::vector<uint64_t> numbers;
  numbers.reserve(2 * round.digits.size());
  for (const CountsRound::Digit& digit : round.digits) {
    numbers.push_back(digit.digit);
    numbers.push_back(static_cast<uint64_t>(digit.count));
  }
  return Crc32(numbers);
}

// Makes `state`, as an algorithm has left that of a layer, the state with the new mask. `before` is
// the session's: an algorithm does not change statistics.
void Decide(const LayerState& before, Mask mask, LayerState& state) {
  state.mask = std::move(mask);
  state.statistics = before.statistics;
  state.counted.reset();
  state.parameters.reset();
  state.answered = true;
}

// A stored session may exceed the limit of CheckCounter.
absl::Status CheckNotNegative(absl::string_view name, int64_t value) {
  if (value >= 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(name, " is ", value, "; it must be at least 0"));
}

}  // namespace

absl::Status CheckCounter(absl::string_view name, int64_t value) {
  if (value >= 0 && value <= kMaxCounter) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, " is ", value, "; it must be in [0, ", kMaxCounter, "]"));
}

Session::Session(const AlgorithmInfo* algorithm, Binding binding, compression::Plan plan)
    : algorithm_(algorithm),
      binding_(std::make_shared<const Binding>(std::move(binding))),
      plan_(std::move(plan)),
      clock_(binding_->clock),
      last_step_(binding_->step_applied ? binding_->clock.step : binding_->clock.step - 1),
      states_(binding_->layers.size(), std::make_shared<const LayerState>()),
      checksums_(states_.size()) {}

absl::StatusOr<std::unique_ptr<Session>> Session::Bind(const Registry& registry, Binding binding,
                                                       const std::function<bool()>& cancelled) {
  auto algorithm = registry.Find(binding.algorithm);
  if (!algorithm.ok()) return algorithm.status();
  if (auto status = CheckNotNegative("epoch", binding.clock.epoch); !status.ok()) return status;
  if (auto status = CheckNotNegative("step", binding.clock.step); !status.ok()) return status;
  auto index = IndexLayers(binding.layers);
  if (!index.ok()) return index.status();
  if (auto s = AssignGroups(binding.filter_groups, *index, binding.layers); !s.ok()) return s;
  binding.filter_groups = {};
  auto plan = MakePlan(**algorithm, binding.config_list, binding.framework, binding.layers,
                       binding.unfiltered, cancelled);
  if (!plan.ok()) return plan.status();
  for (size_t i = 0; i < plan->layers.size(); ++i) {
    const PlannedRule* planned = plan->layers[i].planned;
    if (planned == nullptr) continue;
    auto status = CheckGroups((*algorithm)->name, planned->traits(), binding.layers[i]);
    if (!status.ok()) return status;
  }
  std::unique_ptr<Session> session(new Session(*algorithm, std::move(binding), *std::move(plan)));
  session->index_ = *std::move(index);
  return session;
}

std::optional<int> Session::IndexOf(absl::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? std::nullopt : std::make_optional(found->second);
}

absl::StatusOr<int> Session::FindLayer(absl::string_view name) const {
  if (const std::optional<int> index = IndexOf(name)) {
    unknown_names_ = 0;
    return *index;
  }
  std::vector<std::string> names;
  if (++unknown_names_ > kMaxNamesInARow) {
    return absl::NotFoundError(absl::StrCat("the session has no layer ", Quoted(name)));
  }
  for (const Layer& layer : absl::MakeConstSpan(binding_->layers).subspan(0, kMaxSuggestions)) {
    names.push_back(layer.name);
  }
  return absl::NotFoundError(
      absl::StrCat("the session has no layer ", Quoted(name), Suggestion(name, names)));
}

const Compressor* Session::CompressorOf(int i) const {
  const PlannedRule* planned = plan_.layers[i].planned;
  return planned == nullptr ? nullptr : planned->compressor.get();
}

bool Session::IsJoint(int i) const {
  const PlannedRule* planned = plan_.layers[i].planned;
  return planned != nullptr && planned->joint;
}

bool Session::IsStaleTogether(const PlannedRule& rule) const {
  const auto [known, fresh] = stale_together_.try_emplace(rule.rule, true);
  if (!fresh) return known->second;
  const auto& pruner = static_cast<const Pruner&>(*rule.compressor);
  std::vector<LayerInState> layers;
  layers.reserve(rule.layers.size());
  for (const int i : rule.layers) {
    if (!state(i).answered || pruner.IsStale(layer(i), state(i), clock_)) return true;
    layers.push_back({layer(i), state(i)});
  }
  return known->second = pruner.IsStaleTogether(layers, clock_);
}

bool Session::IsStale(int i) const {
  const Compressor* compressor = CompressorOf(i);
  if (compressor == nullptr) return false;
  if (IsJoint(i)) return IsStaleTogether(*plan_.layers[i].planned);
  return !state(i).answered || compressor->IsStale(layer(i), state(i), clock_);
}

std::vector<int> Session::StaleLayers() const {
  std::vector<int> stale;
  for (int i = 0; i < static_cast<int>(states_.size()); ++i) {
    if (IsStale(i)) stale.push_back(i);
  }
  return stale;
}

absl::Status Session::CheckCompressed(int i, AlgorithmKind kind) const {
  if (algorithm_->kind != kind) {
    return absl::FailedPreconditionError(
        absl::StrCat("the session's algorithm is ", algorithm_->name,
                     kind == AlgorithmKind::kPruner ? ", a quantizer: it has no masks"
                                                    : ", a pruner: it does not quantize"));
  }
  const LayerPlan& plan = plan_.layers[i];
  if (plan.planned != nullptr) return absl::OkStatus();
  const std::string why = !plan.rule ? "no rule matches it"
                          : !plan.left_out.empty()
                              ? plan.left_out
                              : absl::StrCat("config_list[", *plan.rule, "] excludes it");
  return absl::InvalidArgumentError(
      absl::StrCat("layer ", Quoted(layer(i).name), " is not compressed: ", why));
}

absl::Status Session::CheckWeight(int i, const at::Tensor& weight) const {
  const Layer& bound = layer(i);
  if (!weight.defined() || !weight.device().is_cpu() || !weight.is_contiguous()) {
    return absl::InvalidArgumentError(absl::StrCat("weight of layer ", Quoted(bound.name),
                                                   " must be contiguous and in CPU memory"));
  }
  const c10::ScalarType dtype = ToScalarType(bound.dtype).value();
  if (weight.scalar_type() != dtype) {
    return absl::InvalidArgumentError(absl::StrCat(
        "weight of layer ", Quoted(bound.name), " has dtype ", c10::toString(weight.scalar_type()),
        "; it must be the bound one, ", DataTypeName(bound.dtype)));
  }
  if (weight.sizes() != at::IntArrayRef(bound.shape)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "weight of layer ", Quoted(bound.name), " has shape [", absl::StrJoin(weight.sizes(), ", "),
        "]; it must be the bound one, [", absl::StrJoin(bound.shape, ", "), "]"));
  }
  return absl::OkStatus();
}

std::optional<double> Session::AnswerTarget(int i) const {
  // That of all layers together is not that of each.
  if (plan_.layers[i].planned->traits().joint) return std::nullopt;
  return TargetSparsity(*plan_.layers[i].planned, clock_.epoch);
}

MaskAnswer Session::AnswerMask(int i) const {
  return {*state(i).mask, AnswerTarget(i), clock_.epoch};
}

absl::Status Session::CheckMaskIsHere(int i) const {
  // A mask that removes nothing is as good as none.
  if (!state(i).counted || (state(i).pruned() == 0 && IsStale(i))) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "the mask of layer ", Quoted(layer(i).name),
      " is with the trainer, which has counted its weights: send the mask, or counts"));
}

absl::StatusOr<MaskAnswer> Session::CalcMask(int i, const Weight& weight) {
  if (auto status = CheckCompressed(i, AlgorithmKind::kPruner); !status.ok()) return status;
  if (auto status = CheckWeight(i, weight.values); !status.ok()) return status;
  if (auto status = CheckMaskIsHere(i); !status.ok()) return status;
  if (!IsStale(i)) return AnswerMask(i);
  if (IsJoint(i)) {
    auto answers = CalcMasks({{i, weight}});
    if (!answers.ok()) return answers.status();
    return (*answers)[0];
  }
  const auto& pruner = static_cast<const Pruner&>(*CompressorOf(i));
  LayerState state = *states_[i];
  auto mask = CatchAll<Mask>([&] { return pruner.CalcMask(layer(i), weight, state, clock_); });
  if (!mask.ok()) return mask.status();
  if (auto s = CheckMask(algorithm_->name, layer(i), *mask); !s.ok()) return s;
  Decide(*states_[i], *std::move(mask), state);
  if (auto s = Commit(i, std::move(state)); !s.ok()) return s;
  return AnswerMask(i);
}

absl::StatusOr<std::vector<MaskAnswer>> Session::CalcMasks(absl::Span<const LayerWeight> weights) {
  absl::flat_hash_map<int, const Weight*> given;
  std::map<int, const PlannedRule*> stale;  // by index: results do not depend on the order given
  for (const auto& [i, weight] : weights) {
    if (auto status = CheckCompressed(i, AlgorithmKind::kPruner); !status.ok()) return status;
    if (auto status = CheckWeight(i, weight.values); !status.ok()) return status;
    if (auto status = CheckMaskIsHere(i); !status.ok()) return status;
    if (!given.try_emplace(i, &weight).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("layer ", Quoted(layer(i).name), " is given twice"));
    }
    const PlannedRule* rule = plan_.layers[i].planned;
    if (!rule->joint) {
      return absl::InvalidArgumentError(
          absl::StrCat("layer ", Quoted(layer(i).name), " is decided about by itself"));
    }
    if (IsStaleTogether(*rule)) stale.emplace(rule->rule, rule);
  }
  std::vector<std::pair<int, LayerState>> states;
  for (const auto& entry : stale) {
    if (auto s = DecideTogether(*entry.second, given, states); !s.ok()) return s;
  }
  if (auto s = Commit(std::move(states)); !s.ok()) return s;
  std::vector<MaskAnswer> answers;
  answers.reserve(weights.size());
  for (const LayerWeight& weight : weights) answers.push_back(AnswerMask(weight.layer));
  return answers;
}

absl::Status Session::MissingError(const PlannedRule& rule, int i) const {
  return absl::InvalidArgumentError(absl::StrCat(
      "layer ", Quoted(layer(i).name), " is missing: the ", rule.layers.size(), " layers of ",
      rule.options.path(), " are decided about together and have to be sent in the same call"));
}

absl::Status Session::DecideTogether(const PlannedRule& rule,
                                     const absl::flat_hash_map<int, const Weight*>& given,
                                     std::vector<std::pair<int, LayerState>>& states) const {
  std::vector<JointLayer> layers;
  for (const int i : rule.layers) {
    const auto found = given.find(i);
    if (found == given.end()) return MissingError(rule, i);
    layers.push_back({layer(i), *found->second, *states_[i]});
  }
  const auto& pruner = static_cast<const Pruner&>(*rule.compressor);
  auto masks = CatchAll<std::vector<Mask>>([&] { return pruner.CalcMasks(layers, clock_); });
  if (!masks.ok()) return masks.status();
  if (masks->size() != layers.size()) {
    return absl::InternalError(absl::StrCat("the algorithm ", algorithm_->name, " returned ",
                                            masks->size(), " masks for ", layers.size(),
                                            " layers"));
  }
  for (size_t k = 0; k < layers.size(); ++k) {
    if (auto s = CheckMask(algorithm_->name, layers[k].layer, (*masks)[k]); !s.ok()) return s;
    LayerState& state = layers[k].state;
    Decide(*states_[rule.layers[k]], std::move((*masks)[k]), state);
    states.emplace_back(rule.layers[k], std::move(state));
  }
  return absl::OkStatus();
}

absl::Status Session::CheckCounts(const LayerCounts& counts) const {
  if (auto status = CheckCompressed(counts.layer, AlgorithmKind::kPruner); !status.ok()) {
    return status;
  }
  const Layer& bound = layer(counts.layer);
  if (!plan_.layers[counts.layer].planned->takes_counts) {
    return absl::InvalidArgumentError(
        absl::StrCat("counts of layer ", Quoted(bound.name), " are not enough for ",
                     plan_.layers[counts.layer].planned->options.path(), ": its weight is needed"));
  }
  const auto rounds = static_cast<int>(counts.rounds.size());
  const int most = ThresholdSearch::Rounds(bound.dtype);
  if (rounds >= 1 && rounds <= most) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("counts of layer ", Quoted(bound.name), " have ",
                                                 rounds, " rounds; ", DataTypeName(bound.dtype),
                                                 " has 1 to ", most));
}

absl::StatusOr<CountsAnswer> Session::AnswerDecided(const LayerCounts& counts) const {
  const int i = counts.layer;
  if (!state(i).counted) return AnswerMask(i);
  const CountedMask& decided = *state(i).counted;
  if (Checksum(counts.rounds.front()) != decided.counted) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the mask of layer ", Quoted(layer(i).name),
        " was decided from other counts, and it is not stale: keep the mask that they gave. Ranks "
        "that share a session must have the same weights and masks"));
  }
  return ThresholdAnswer{decided.threshold, layer(i).elements, AnswerTarget(i), clock_.epoch};
}

absl::StatusOr<std::vector<CountsAnswer>> Session::CalcThresholds(
    absl::Span<const LayerCounts> counts) {
  absl::flat_hash_map<int, const LayerCounts*> given;
  for (const LayerCounts& of_layer : counts) {
    if (auto status = CheckCounts(of_layer); !status.ok()) return status;
    if (given.try_emplace(of_layer.layer, &of_layer).second) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("layer ", Quoted(layer(of_layer.layer).name), " is given twice"));
  }
  std::vector<CountsAnswer> answers;
  answers.reserve(counts.size());
  if (!IsStale(counts.front().layer)) {
    for (const LayerCounts& of_layer : counts) {
      auto answer = AnswerDecided(of_layer);
      if (!answer.ok()) return answer.status();
      answers.push_back(*std::move(answer));
    }
    return answers;
  }

  const PlannedRule& rule = *plan_.layers[counts.front().layer].planned;
  const std::vector<int> indices =
      rule.joint ? rule.layers : std::vector<int>{counts.front().layer};
  std::vector<const LayerCounts*> ordered;
  std::vector<CountedLayer> layers;
  for (const int i : indices) {
    const auto found = given.find(i);
    if (found == given.end()) return MissingError(rule, i);
    ordered.push_back(found->second);
    CountedLayer counted;
    counted.dtype = layer(i).dtype;
    counted.elements = layer(i).elements;
    counted.previously_pruned = state(i).pruned();
    layers.push_back(counted);
  }
  if (given.size() > indices.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("layers that ", rule.options.path(), " does not decide about are among them"));
  }
  const auto& pruner = static_cast<const Pruner&>(*rule.compressor);
  const int64_t total = pruner.TotalToPrune(layers, clock_);
  ThresholdSearch search(layers, total);
  for (size_t round = 0; !search.done(); ++round) {
    std::vector<CountsRound> next;
    for (size_t k = 0; k < ordered.size(); ++k) {
      const auto& rounds = ordered[k]->rounds;
      if (round >= rounds.size() || rounds[round].prefix != search.threshold(k).key) break;
      if (auto status = search.Check(k, rounds[round]); !status.ok()) {
        return absl::Status(status.code(),
                            absl::StrCat("round ", round, " of layer ",
                                         Quoted(layer(indices[k]).name), ": ", status.message()));
      }
      next.push_back(rounds[round]);
    }
    if (next.size() < ordered.size()) break;
    search.Count(std::move(next));
  }
  if (search.done()) {
    std::vector<std::pair<int, LayerState>> states;
    for (size_t k = 0; k < indices.size(); ++k) {
      LayerState state = *states_[indices[k]];
      state.mask.reset();
      state.counted = {search.threshold(k), Checksum(ordered[k]->rounds.front())};
      state.parameters.reset();
      state.answered = true;
      states.emplace_back(indices[k], std::move(state));
    }
    if (auto status = Commit(std::move(states)); !status.ok()) return status;
  }
  absl::flat_hash_map<int, size_t> position;
  for (size_t k = 0; k < indices.size(); ++k) position[indices[k]] = k;
  for (const LayerCounts& of_layer : counts) {
    const int i = of_layer.layer;
    answers.push_back(ThresholdAnswer{search.threshold(position[i]), layer(i).elements,
                                      AnswerTarget(i), clock_.epoch});
  }
  return answers;
}

uint32_t Session::MaskChecksum(int i) const {
  std::optional<uint32_t>& checksum = checksums_[i];
  if (checksum) return *checksum;
  if (const auto& mask = state(i).mask) {
    const absl::Span<const uint8_t> bits = mask->bits().span();
    checksum = static_cast<uint32_t>(crc32_z(0, bits.data(), bits.size()));
  } else if (const auto& counted = state(i).counted) {
    const Threshold& decided = counted->threshold;
    checksum = Crc32(
        {decided.key, static_cast<uint64_t>(decided.ties), static_cast<uint64_t>(decided.pruned)});
  } else {
    checksum = 0;
  }
  return *checksum;
}

absl::StatusOr<MaskAnswer> Session::SetMask(int i, Mask mask) {
  if (auto status = CheckCompressed(i, algorithm_->kind); !status.ok()) return status;
  if (mask.elements() != layer(i).elements) {
    return absl::InvalidArgumentError(
        absl::StrCat("mask of layer ", Quoted(layer(i).name), " has ", mask.elements(),
                     " elements; it must have the weight's ", layer(i).elements));
  }
  LayerState state = *states_[i];
  state.mask = mask;
  state.counted.reset();
  if (algorithm_->kind == AlgorithmKind::kPruner) {
    auto adopted = CatchAll<LayerState>([&]() -> absl::StatusOr<LayerState> {
      const auto& pruner = static_cast<const Pruner&>(*CompressorOf(i));
      auto status = pruner.Adopt(layer(i), state, clock_);
      return status.ok() ? absl::StatusOr<LayerState>(std::move(state)) : status;
    });
    if (!adopted.ok()) return adopted.status();
    state = *std::move(adopted);
    Decide(*states_[i], std::move(mask), state);
  }
  if (auto s = Commit(i, std::move(state)); !s.ok()) return s;
  return AnswerMask(i);
}

RememberedNumbers Session::RememberedOf(int i) const {
  RememberedNumbers found;
  const Compressor* compressor = CompressorOf(i);
  if (compressor == nullptr) return found;
  for (const Remembered& remembered : compressor->traits().remembered) {
    const auto numbers = states_[i]->memory.find(remembered.name);
    if (numbers != states_[i]->memory.end()) found.insert(*numbers);
  }
  return found;
}

absl::Status Session::Remember(int i, const RememberedNumbers& memory) {
  if (auto status = CheckCompressed(i, algorithm_->kind); !status.ok()) return status;
  const std::vector<Remembered>& known = CompressorOf(i)->traits().remembered;
  LayerState state = *states_[i];
  for (const auto& [name, values] : memory) {
    const auto found = std::find_if(known.begin(), known.end(),
                                    [&name = name](const auto& r) { return r.name == name; });
    if (found == known.end()) {
      std::vector<std::string> names;
      names.reserve(known.size());
      for (const Remembered& remembered : known) names.push_back(remembered.name);
      return absl::InvalidArgumentError(absl::StrCat(
          "layer ", Quoted(layer(i).name), " has ", Quoted(name), "; ",
          names.empty()
              ? absl::StrCat("the algorithm ", algorithm_->name, " has no state that can be set")
              : absl::StrCat("it must be one of ", absl::StrJoin(names, ", "))));
    }
    if (auto status = CheckRemembered(layer(i), *found, values); !status.ok()) return status;
    state.memory[name] = values;
  }
  return Commit(i, std::move(state));
}

absl::Status Session::CountMemory(ReserveMemory reserve) {
  reserve_memory_ = std::move(reserve);
  remembered_ = 0;
  reserved_ = 0;
  for (const auto& state : states_) remembered_ += RememberedBytes(*state);
  return ReserveFor(remembered_);
}

absl::Status Session::ReserveFor(int64_t remembered) {
  if (reserve_memory_ == nullptr || remembered <= reserved_) return absl::OkStatus();
  if (absl::Status status = reserve_memory_(remembered - reserved_); !status.ok()) return status;
  reserved_ = remembered;
  return absl::OkStatus();
}

absl::Status Session::Commit(int i, LayerState state) {
  std::vector<std::pair<int, LayerState>> states;
  states.emplace_back(i, std::move(state));
  return Commit(std::move(states));
}

absl::Status Session::Commit(std::vector<std::pair<int, LayerState>> states) {
  int64_t remembered = remembered_;
  for (const auto& [i, state] : states) {
    if (auto s = CheckState(algorithm_->name, layer(i), state); !s.ok()) return s;
    remembered += RememberedBytes(state) - RememberedBytes(*states_[i]);
  }
  if (auto s = ReserveFor(remembered); !s.ok()) return s;
  remembered_ = remembered;
  for (auto& [i, state] : states) {
    if (!SameState(*states_[i], state)) changes_.layers.insert(i);
    states_[i] = std::make_shared<const LayerState>(std::move(state));
    checksums_[i].reset();
  }
  stale_together_.clear();
  return absl::OkStatus();
}

absl::StatusOr<QuantizedWeight> Session::Quantize(
    int i, QuantizeReply reply,
    absl::FunctionRef<absl::StatusOr<QuantizedWeight>(const Quantizer&, LayerState&)> call) {
  const auto& quantizer = static_cast<const Quantizer&>(*CompressorOf(i));
  LayerState state = *states_[i];
  auto result = CheckedQuantize(answerer(), quantizer, layer(i), reply,
                                [&] { return call(quantizer, state); });
  if (!result.ok()) return result.status();
  state.mask = states_[i]->mask;
  state.statistics = states_[i]->statistics;
  state.parameters = result->parameters;
  state.answered = true;
  if (auto s = Commit(i, std::move(state)); !s.ok()) return s;
  return result;
}

absl::StatusOr<QuantizedWeight> Session::QuantizeWeight(int i, const Weight& weight,
                                                        QuantizeReply reply) {
  if (auto status = CheckCompressed(i, AlgorithmKind::kQuantizer); !status.ok()) return status;
  if (auto status = CheckWeight(i, weight.values); !status.ok()) return status;
  return Quantize(i, reply, [&](const Quantizer& quantizer, LayerState& state) {
    return quantizer.QuantizeWeight(layer(i), weight, reply, clock_, state);
  });
}

absl::StatusOr<QuantizedWeight> Session::QuantizeRange(int i, const Range& range) {
  if (auto status = CheckCompressed(i, AlgorithmKind::kQuantizer); !status.ok()) return status;
  const auto& quantizer = static_cast<const Quantizer&>(*CompressorOf(i));
  if (!quantizer.traits().accepts_range) {
    return absl::InvalidArgumentError(
        absl::StrCat("the algorithm ", algorithm_->name, " needs weights; a range is not enough"));
  }
  auto status = CheckRange(layer(i), range, quantizer.channels(layer(i)));
  if (!status.ok()) return status;
  return Quantize(i, QuantizeReply::kParameters,
                  [&](const Quantizer& quantizer, LayerState& state) {
                    return quantizer.QuantizeRange(layer(i), range, clock_, state);
                  });
}

absl::StatusOr<LayerState> Session::Observe(int i, const Observation& observation) const {
  return CatchAll<LayerState>([&]() -> absl::StatusOr<LayerState> {
    LayerState state = *states_[i];
    auto status = CompressorOf(i)->Observe(layer(i), observation, clock_, state);
    if (!status.ok()) return status;
    state.mask = states_[i]->mask;
    state.parameters = states_[i]->parameters;
    state.answered = states_[i]->answered;
    state.statistics = states_[i]->statistics;
    return state;
  });
}

absl::Status Session::AddGradient(int i, const at::Tensor& gradient) {
  if (auto status = CheckCompressed(i, algorithm_->kind); !status.ok()) return status;
  if (auto status = CheckWeight(i, gradient); !status.ok()) return status;
  if (!Observes(*CompressorOf(i), Observation::Kind::kGradient)) {
    return absl::InvalidArgumentError(
        absl::StrCat("the algorithm ", algorithm_->name, " does not use gradients"));
  }
  auto state = Observe(i, {Observation::Kind::kGradient, gradient, {}});
  if (!state.ok()) return state.status();
  return Commit(i, *std::move(state));
}

absl::StatusOr<StatisticAnswer> Session::AddStatistic(int i, const StatisticPart& part) {
  if (auto status = CheckCompressed(i, algorithm_->kind); !status.ok()) return status;
  const std::vector<const StatisticInfo*> wanted = plan_.layers[i].planned->StatisticsOf(layer(i));
  const auto found = std::find_if(wanted.begin(), wanted.end(), [&](const StatisticInfo* info) {
    return info->kind == part.kind;
  });
  if (found == wanted.end()) {
    const StatisticInfo* const info = FindStatistic(static_cast<int>(part.kind));
    const auto name = [](std::string* out, const StatisticInfo* one) {
      absl::StrAppend(out, one->name);
    };
    return absl::InvalidArgumentError(absl::StrCat(
        "layer ", Quoted(layer(i).name), " is sent the statistic ",
        info == nullptr ? absl::StrCat(static_cast<int>(part.kind)) : std::string(info->name), "; ",
        plan_.layers[i].planned->options.path(), " uses ",
        wanted.empty() ? "none" : absl::StrJoin(wanted, ", ", name)));
  }
  LayerState state = *states_[i];
  std::shared_ptr<const Statistic>& statistic = state.statistics[part.kind];
  auto added = AddPart(**found, layer(i), statistic, part);
  if (!added.ok()) return added.status();
  statistic = added->statistic;
  const StatisticAnswer answer = {added->known, statistic->count()};
  if (auto s = Commit(i, std::move(state)); !s.ok()) return s;
  return answer;
}

absl::StatusOr<const Quantizer*> Session::QuantizerOf(int i, Activation activation) const {
  if (auto status = CheckCompressed(i, AlgorithmKind::kQuantizer); !status.ok()) return status;
  if (Quantizes(i, activation)) return static_cast<const Quantizer*>(CompressorOf(i));
  const PlannedRule& planned = *plan_.layers[i].planned;
  return absl::InvalidArgumentError(
      absl::StrCat("the ", activation == Activation::kOutput ? "outputs" : "inputs", " of layer ",
                   Quoted(layer(i).name), " are not quantized: ", planned.options.path(),
                   ".quant_types would have to name them, under an algorithm that does"));
}

absl::StatusOr<ActivationAnswer> Session::ObserveActivation(int i, Activation activation,
                                                            const Range& range) {
  const auto quantizer = QuantizerOf(i, activation);
  if (!quantizer.ok()) return quantizer.status();
  if (auto status = CheckRange(layer(i), range, /*channels=*/1); !status.ok()) return status;
  auto state = Observe(i, {ObservationOf(activation), {}, range});
  if (!state.ok()) return state.status();
  auto answer = CheckedActivation(answerer(), **quantizer, layer(i), activation, clock_, *state);
  if (!answer.ok()) return answer;
  if (auto s = Commit(i, *std::move(state)); !s.ok()) return s;
  return answer;
}

bool Session::Quantizes(int i, Activation activation) const {
  const auto* const quantizer = dynamic_cast<const Quantizer*>(CompressorOf(i));
  return quantizer != nullptr && Observes(*quantizer, ObservationOf(activation));
}

absl::StatusOr<ActivationAnswer> Session::QuantizeActivation(int i, Activation activation) const {
  const auto quantizer = QuantizerOf(i, activation);
  if (!quantizer.ok()) return quantizer.status();
  return CheckedActivation(answerer(), **quantizer, layer(i), activation, clock_, state(i));
}

LayerSnapshot Session::Snapshot(int i) const {
  return LayerSnapshot(answerer(), std::shared_ptr<const Layer>(binding_, &layer(i)), states_[i],
                       plan_.layers[i].planned->compressor, clock_);
}

std::optional<double> Session::TargetSparsity(const PlannedRule& rule, int64_t epoch) const {
  if (algorithm_->kind != AlgorithmKind::kPruner) return std::nullopt;
  return CheckedTarget(static_cast<const Pruner&>(*rule.compressor), {epoch, clock_.step});
}

absl::Status Session::UpdateEpoch(int64_t epoch) {
  if (auto status = CheckCounter("epoch", epoch); !status.ok()) return status;
  changes_.global |= clock_.epoch != epoch;
  clock_.epoch = epoch;
  stale_together_.clear();
  return absl::OkStatus();
}

absl::StatusOr<bool> Session::Step(int64_t step) {
  if (auto status = CheckCounter("step", step); !status.ok()) return status;
  if (step <= last_step_) return false;
  changes_.global = true;
  last_step_ = step;
  clock_.step = step;
  stale_together_.clear();
  return true;
}

}  // namespace nni_compression::compression
