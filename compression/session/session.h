// A session: one algorithm bound to one model, and all that it remembers.
#ifndef NNI_COMPRESSION_COMPRESSION_SESSION_SESSION_H_
#define NNI_COMPRESSION_COMPRESSION_SESSION_SESSION_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "compression/algorithms/registry.h"
#include "compression/session/filter_groups.h"
#include "compression/session/plan.h"
#include "compression/session/snapshot.h"
#include "compression/statistics/statistic.h"

namespace nni_compression::compression {

// The largest epoch and step that a trainer may set: JSON holds all integers up to here.
constexpr int64_t kMaxCounter = int64_t{1} << 53;

// INVALID_ARGUMENT, naming the counter, when it is not in [0, kMaxCounter].
absl::Status CheckCounter(absl::string_view name, int64_t value);

// The input of BindModel.
struct Binding {
  std::string algorithm;
  std::vector<nlohmann::json> config_list;
  std::vector<Layer> layers;
  std::vector<FilterGroup> filter_groups;  // Bind moves them to the layers
  std::string framework;                   // "pytorch", "tensorflow", "keras", "generic"
  Clock clock;                             // where training resumes
  bool step_applied = false;  // whether inputs for `clock.step` have been applied already
  Unfiltered unfiltered = Unfiltered::kEveryLayer;
};

// Saved state of a layer, by name; see Traits::remembered.
using RememberedNumbers = std::map<std::string, std::vector<float>>;

struct MaskAnswer {
  Mask mask;
  std::optional<double> target_sparsity;
  int64_t epoch = 0;
};

struct LayerWeight {
  int layer = -1;
  Weight weight;
};

// In place of a weight: how many of its magnitudes there are, round by round.
struct LayerCounts {
  int layer = -1;
  std::vector<CountsRound> rounds;  // at least 1
};

// The threshold of a layer, as far as the rounds tell; decided once all of its bits are known.
struct ThresholdAnswer {
  Threshold threshold;
  int64_t elements = 0;
  std::optional<double> target_sparsity;
  int64_t epoch = 0;
};

using CountsAnswer = std::variant<ThresholdAnswer, MaskAnswer>;

struct StatisticAnswer {
  bool known = false;  // the part had been added before
  int64_t count = 0;   // samples of the statistic now
};

// The state machine behind every call, independent of the wire format. A method that fails does not
// change the session. Thread-compatible.
class Session {
 public:
  // Validates everything; see MakePlan for the config_list. INVALID_ARGUMENT names the field
  // ("layers[3].shape[1] is -2; ..."). `cancelled`, if given, is polled from time to time; when it
  // returns true, the result is CANCELLED.
  static absl::StatusOr<std::unique_ptr<Session>> Bind(
      const Registry& registry, Binding binding, const std::function<bool()>& cancelled = nullptr);

  const Plan& plan() const { return plan_; }
  const Binding& binding() const { return *binding_; }
  const AlgorithmInfo& algorithm() const { return *algorithm_; }
  Clock clock() const { return clock_; }

  // The index of a bound layer; aliases count. NOT_FOUND otherwise, with a suggestion for the first
  // few unknown names after a known one, since searching for similar names is expensive.
  absl::StatusOr<int> FindLayer(absl::string_view name) const;
  std::optional<int> IndexOf(absl::string_view name) const;  // as FindLayer, without a message
  const Layer& layer(int i) const { return binding_->layers[i]; }
  const LayerState& state(int i) const { return *states_[i]; }

  // A snapshot of compressed layer i, for exporters.
  LayerSnapshot Snapshot(int i) const;

  // The target sparsity of a rule of the plan at an epoch, for reports. nullopt for quantizers, and
  // if the algorithm does not define it.
  std::optional<double> TargetSparsity(const PlannedRule& rule, int64_t epoch) const;

  // Whether the layer's rule decides about all of its layers together: CalcMasks.
  bool IsJoint(int i) const;

  // Whether the layer was never answered or would now be answered differently. Layers of a joint
  // rule are stale together.
  bool IsStale(int i) const;
  std::vector<int> StaleLayers() const;

  // The layer's mask at the present epoch. The first weight of a stale layer decides; afterwards
  // the weight is ignored. FAILED_PRECONDITION when the algorithm is a quantizer, or only the
  // trainer has the layer's mask and has not sent it (SetMask); INVALID_ARGUMENT
  // when the layer is not compressed, or the dtype or shape is not the bound one, or the weight is
  // not finite (layer and first flat index named), or the layer is stale and of a joint rule that
  // has others.
  absl::StatusOr<MaskAnswer> CalcMask(int i, const Weight& weight);

  // The masks of layers of joint rules, in their order, at the present epoch. Rules with a stale
  // layer among them must be complete. All or none are decided. Errors as CalcMask's, and
  // INVALID_ARGUMENT that names a layer that is missing or given twice.
  absl::StatusOr<std::vector<MaskAnswer>> CalcMasks(absl::Span<const LayerWeight> weights);

  // The thresholds of layers that are decided about together, all of a joint rule or one of
  // another, from counts; of layers that are not stale, those that were decided, or their masks.
  // The masks are then with the trainer. Nothing changes until all bits of the thresholds are
  // known: rounds behind one whose prefix is another than the threshold's so far are ignored.
  // Errors as those of CalcMasks, INVALID_ARGUMENT when the rule needs weights or the counts do not
  // add up, FAILED_PRECONDITION when others decided.
  absl::StatusOr<std::vector<CountsAnswer>> CalcThresholds(absl::Span<const LayerCounts> counts);

  // Identifies the layer's mask: the CRC-32 of its bits, or of its threshold's key, ties and
  // pruned, each as 64 bits; 0 without a mask.
  uint32_t MaskChecksum(int i) const;

  // Sets a mask of the trainer, replacing the previous one. In a quantizer's session it affects
  // exports only, where removed weights are 0.
  absl::StatusOr<MaskAnswer> SetMask(int i, Mask mask);

  // The state of a layer, without its mask, that can be passed to another session.
  RememberedNumbers RememberedOf(int i) const;
  // Replaces that state. INVALID_ARGUMENT, naming the entry and the allowed range, for entries that
  // the layer's algorithm does not have, or invalid values.
  absl::Status Remember(int i, const RememberedNumbers& memory);

  // Quantizes a weight at the present step. Errors as CalcMask's.
  absl::StatusOr<QuantizedWeight> QuantizeWeight(int i, const Weight& weight, QuantizeReply reply);
  // The parameters of a weight with this range. INVALID_ARGUMENT when minimum > maximum, a number
  // is not finite, or there are not as many as the rule's granularity asks for.
  absl::StatusOr<QuantizedWeight> QuantizeRange(int i, const Range& range);

  // Observes the range of a layer's activations since the last step. Errors as QuantizeRange, and
  // INVALID_ARGUMENT when the layer's rule does not quantize these activations.
  absl::StatusOr<ActivationAnswer> ObserveActivation(int i, Activation activation,
                                                     const Range& range);
  // Whether the rule of compressed layer i quantizes these activations.
  bool Quantizes(int i, Activation activation) const;
  // The last answer for them, at the present step.
  absl::StatusOr<ActivationAnswer> QuantizeActivation(int i, Activation activation) const;

  // Passes a gradient of the layer's weight to the algorithm. INVALID_ARGUMENT when it does not use
  // gradients, or dtype or shape is not the weight's.
  absl::Status AddGradient(int i, const at::Tensor& gradient);

  // Adds a part to a statistic of the layer. INVALID_ARGUMENT when the layer's rule does not want
  // it, or AddPart refuses it.
  absl::StatusOr<StatisticAnswer> AddStatistic(int i, const StatisticPart& part);

  // Sets the epoch; in [0, kMaxCounter].
  absl::Status UpdateEpoch(int64_t epoch);

  // Sets the step, in [0, kMaxCounter], if it is above the last one applied; returns whether it
  // was. Only then are inputs for the step applied.
  absl::StatusOr<bool> Step(int64_t step);

  // The state as bytes: one global record and one per layer, each versioned. A session bound to the
  // same Binding that loads them answers as this one, bit for bit. DATA_LOSS for bytes that are not
  // such a record or do not fit the binding; the session is then as before. A record is freed once
  // it is read, so that both forms of a state take little more memory than one.
  std::string SaveGlobal() const;
  std::string SaveLayer(int i) const;
  absl::Status Load(absl::string_view global, std::vector<std::string> layers);

  // The changes since the last call, or since the binding: what has to be saved.
  struct Changes {
    bool global = false;
    std::set<int> layers;
    bool empty() const { return !global && layers.empty(); }
  };
  Changes TakeChanges() { return std::exchange(changes_, {}); }

  // Memory that the state holds, masks included.
  int64_t StateBytes() const;

  // From now on, `reserve` is called before the state of layers (LayerState's `memory`, `opaque`
  // and `statistics`) grows beyond its previous maximum; it is called now for the present state. If
  // it fails, the method fails with its status and does not change the session.
  using ReserveMemory = std::function<absl::Status(int64_t bytes)>;
  absl::Status CountMemory(ReserveMemory reserve);

 private:
  Session(const AlgorithmInfo* algorithm, Binding binding, Plan plan);

  const Compressor* CompressorOf(int i) const;  // null: not compressed
  absl::Status CheckCompressed(int i, AlgorithmKind kind) const;
  absl::Status CheckWeight(int i, const at::Tensor& weight) const;
  absl::Status CheckFits(int i, const LayerState& state) const;
  absl::StatusOr<const Quantizer*> QuantizerOf(int i, Activation activation) const;
  // The layer's state after the observation.
  absl::StatusOr<LayerState> Observe(int i, const Observation& observation) const;
  std::optional<double> AnswerTarget(int i) const;
  MaskAnswer AnswerMask(int i) const;
  // FAILED_PRECONDITION when the layer's mask is with the trainer.
  absl::Status CheckMaskIsHere(int i) const;
  absl::Status CheckCounts(const LayerCounts& counts) const;
  // The answer to counts of a layer that is not stale.
  absl::StatusOr<CountsAnswer> AnswerDecided(const LayerCounts& counts) const;
  absl::Status Commit(int i, LayerState state);
  absl::Status Commit(std::vector<std::pair<int, LayerState>> states);
  bool IsStaleTogether(const PlannedRule& rule) const;
  absl::Status MissingError(const PlannedRule& rule, int i) const;
  // Adds the states of the rule's layers with their new masks.
  absl::Status DecideTogether(const PlannedRule& rule,
                              const absl::flat_hash_map<int, const Weight*>& given,
                              std::vector<std::pair<int, LayerState>>& states) const;
  absl::Status ReserveFor(int64_t remembered);
  absl::StatusOr<QuantizedWeight> Quantize(
      int i, QuantizeReply reply,
      absl::FunctionRef<absl::StatusOr<QuantizedWeight>(const Quantizer&, LayerState&)> call);

  Answerer answerer() const { return {algorithm_->name, !algorithm_->source.empty()}; }

  const AlgorithmInfo* algorithm_;
  std::shared_ptr<const Binding> binding_;  // snapshots share its layers
  Plan plan_;
  Clock clock_;
  int64_t last_step_ = -1;                                 // the highest step applied
  std::vector<std::shared_ptr<const LayerState>> states_;  // replaced, never written
  ReserveMemory reserve_memory_;
  int64_t remembered_ = 0;         // bytes, of all layers
  int64_t reserved_ = 0;           // the maximum of remembered_ so far
  mutable int unknown_names_ = 0;  // in a row, given to FindLayer
  Changes changes_;
  absl::flat_hash_map<std::string, int> index_;
  mutable std::vector<std::optional<uint32_t>> checksums_;  // of masks; unset after a change
  // Of joint rules, by their index: whether their layers are stale; empty after a change.
  mutable absl::flat_hash_map<int, bool> stale_together_;
};

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_SESSION_SESSION_H_
