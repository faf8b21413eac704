#include "server/external/guarded_compressor.h"

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "compression/messages/suggest.h"
#include "compression/session/check_answer.h"
#include "server/base/log.h"
#include "server/base/mutex.h"

namespace nni_compression::server {
namespace {

using compression::Activation;
using compression::ActivationAnswer;
using compression::AlgorithmInfo;
using compression::AlgorithmKind;
using compression::Compressor;
using compression::JointLayer;
using compression::Layer;
using compression::LayerState;
using compression::Mask;
using compression::Observation;
using compression::Options;
using compression::Pruner;
using compression::QuantizedWeight;
using compression::Quantizer;
using compression::QuantizeReply;
using compression::Range;
using compression::Weight;

std::string OnLayer(const Layer& layer) {
  return absl::StrCat("layer ", compression::Quoted(layer.name));
}

// A copy that an abandoned call may still use. Statistics belong to a cache and are not copied.
template <typename T>
const T& Own(const T& argument) {
  return argument;
}
Weight Own(const Weight& weight) { return Weight(weight.values); }
std::vector<JointLayer> Own(const std::vector<JointLayer>& layers) {
  std::vector<JointLayer> own = layers;
  for (JointLayer& layer : own) layer.weight = Own(layer.weight);
  return own;
}

// Leaks a compressor whose code must not run any more, not even its destructor.
void Leak(std::shared_ptr<const Compressor> compressor) {
  static Mutex mutex;
  static auto* const kept = new std::vector<std::shared_ptr<const Compressor>>;
  MutexLock lock(&mutex);
  kept->push_back(std::move(compressor));
}

// The common part of guarded pruners and quantizers. `Base` is Pruner or Quantizer.
template <typename Base>
class Guard : public Base {
 public:
  Guard(std::shared_ptr<ExternalHost> host, std::shared_ptr<const Base> inner)
      : host_(std::move(host)), inner_(std::move(inner)) {
    this->traits_ = inner_->traits();
    // TotalToPrune cannot fail, as any call of external code can.
    this->traits_.takes_counts = false;
  }

  // The destructor of the inner compressor is external code, too.
  ~Guard() override {
    if (!host_->refusal().empty()) {
      Leak(std::move(inner_));
      return;
    }
    const absl::Status ended =
        host_->Run("the end of a session", [inner = std::exchange(inner_, nullptr)]() mutable {
          inner.reset();
          return absl::OkStatus();
        });
    ended.IgnoreError();
  }

  bool IsStale(const Layer& layer, const LayerState& state,
               compression::Clock clock) const override {
    // An answer becomes stale only by a new epoch or step.
    if (!this->traits_.needs_epoch && !this->traits_.needs_step) return false;
    return Ask(OnLayer(layer), true, &Base::IsStale, layer, state, clock);
  }

  absl::Status Observe(const Layer& layer, const Observation& observation, compression::Clock clock,
                       LayerState& state) const override {
    return Invoke(OnLayer(layer), &Base::Observe, layer, observation, clock, state);
  }

  int64_t work_bytes(const Layer& layer) const override {
    return std::max<int64_t>(Ask(OnLayer(layer), int64_t{0}, &Base::work_bytes, layer), 0);
  }

 protected:
  // Returns the result of `method`, called on the host's threads with copies of the arguments. When
  // it succeeds, a state that it may write is copied back.
  template <typename Method, typename... Arguments>
  auto Invoke(const std::string& what, Method method, Arguments&... arguments) const {
    using Answer = decltype((std::declval<const Base&>().*method)(arguments...));
    struct Call {
      std::tuple<std::remove_const_t<Arguments>...> arguments;
      std::optional<Answer> answer;
    };
    const auto call = std::make_shared<Call>(Call{{Own(arguments)...}, std::nullopt});
    const absl::Status status = host_->Run(what, [call, method, inner = inner_] {
      call->answer =
          std::apply([&](auto&... own) { return ((*inner).*method)(own...); }, call->arguments);
      return StatusOf(*call->answer);
    });
    if (!status.ok()) return Answer(status);
    std::apply([&](auto&... own) { (ReturnTo(own, arguments), ...); }, call->arguments);
    return *std::move(call->answer);
  }

  // The same for methods that return no status: `otherwise` is returned when the call fails.
  template <typename Answer, typename Method, typename... Arguments>
  Answer Ask(const std::string& what, Answer otherwise, Method method,
             const Arguments&... arguments) const {
    struct Call {
      std::tuple<Arguments...> arguments;
      Answer answer;
    };
    const auto call = std::make_shared<Call>(Call{{arguments...}, otherwise});
    const absl::Status status = host_->Run(what, [call, method, inner = inner_] {
      call->answer = std::apply([&](const auto&... own) { return ((*inner).*method)(own...); },
                                call->arguments);
      return absl::OkStatus();
    });
    if (status.ok()) return call->answer;
    if (absl::IsInternal(status)) {
      LogLimited(LogLevel::kWarning, "algorithm_failed", host_->name(),
                 {{"algorithm", host_->name()}, {"error", status.message()}});
    }
    return otherwise;
  }

  const std::shared_ptr<ExternalHost> host_;
  std::shared_ptr<const Base> inner_;

 private:
  static absl::Status StatusOf(const absl::Status& status) { return status; }
  template <typename T>
  static absl::Status StatusOf(const absl::StatusOr<T>& answer) {
    return answer.status();
  }

  template <typename T>
  static void ReturnTo(T&, const T&) {}
  static void ReturnTo(LayerState& own, LayerState& state) { state = std::move(own); }
  static void ReturnTo(std::vector<JointLayer>& own, std::vector<JointLayer>& layers) {
    for (size_t i = 0; i < layers.size(); ++i) layers[i].state = std::move(own[i].state);
  }
};

class GuardedPruner : public Guard<Pruner> {
 public:
  using Guard::Guard;

  absl::StatusOr<Mask> CalcMask(const Layer& layer, const Weight& weight, LayerState& state,
                                compression::Clock clock) const override {
    return Invoke(OnLayer(layer), &Pruner::CalcMask, layer, weight, state, clock);
  }

  absl::Status Adopt(const Layer& layer, LayerState& state,
                     compression::Clock clock) const override {
    // What cannot become stale does not need to know.
    if (!traits_.needs_epoch && !traits_.needs_step) return absl::OkStatus();
    return Invoke(OnLayer(layer), &Pruner::Adopt, layer, state, clock);
  }

  bool IsStaleTogether(absl::Span<const compression::LayerInState> layers,
                       compression::Clock clock) const override {
    // An answer becomes stale only by a new epoch or step, or by a mask of the trainer.
    return Ask("the layers of a rule", true, &Pruner::IsStaleTogether, layers, clock);
  }

  absl::StatusOr<std::vector<Mask>> CalcMasks(std::vector<JointLayer>& layers,
                                              compression::Clock clock) const override {
    return Invoke("the layers of a rule", &Pruner::CalcMasks, layers, clock);
  }

  std::optional<double> TargetSparsity(compression::Clock clock) const override {
    return Ask("the target sparsity", std::optional<double>(), &Pruner::TargetSparsity, clock);
  }
};

class GuardedQuantizer : public Guard<Quantizer> {
 public:
  using Guard::Guard;

  absl::StatusOr<QuantizedWeight> QuantizeWeight(const Layer& layer, const Weight& weight,
                                                 QuantizeReply reply, compression::Clock clock,
                                                 LayerState& state) const override {
    return Invoke(OnLayer(layer), &Quantizer::QuantizeWeight, layer, weight, reply, clock, state);
  }

  absl::StatusOr<QuantizedWeight> QuantizeRange(const Layer& layer, const Range& range,
                                                compression::Clock clock,
                                                LayerState& state) const override {
    return Invoke(OnLayer(layer), &Quantizer::QuantizeRange, layer, range, clock, state);
  }

  absl::StatusOr<ActivationAnswer> QuantizeActivation(Activation activation,
                                                      compression::Clock clock,
                                                      const LayerState& state) const override {
    return Invoke("the activations of a layer", &Quantizer::QuantizeActivation, activation, clock,
                  state);
  }
};

template <typename Wrapper, typename Base>
std::unique_ptr<Compressor> Wrap(const std::shared_ptr<ExternalHost>& host,
                                 const std::shared_ptr<const Compressor>& inner) {
  return std::make_unique<Wrapper>(host, std::dynamic_pointer_cast<const Base>(inner));
}

absl::StatusOr<std::unique_ptr<Compressor>> Create(const AlgorithmInfo& info,
                                                   const std::shared_ptr<ExternalHost>& host,
                                                   const Options& options) {
  const auto made = std::make_shared<std::shared_ptr<const Compressor>>();
  absl::Status status = host->Run(options.path(), [made, info, options] {
    auto inner = info.create(options);
    if (!inner.ok()) return inner.status();
    absl::Status fits = compression::CheckKind(info, inner->get());
    if (fits.ok()) *made = *std::move(inner);
    return fits;
  });
  if (!status.ok()) return status;
  return info.kind == AlgorithmKind::kPruner ? Wrap<GuardedPruner, Pruner>(host, *made)
                                             : Wrap<GuardedQuantizer, Quantizer>(host, *made);
}

}  // namespace

AlgorithmInfo Guarded(const AlgorithmInfo& info, const std::shared_ptr<ExternalHost>& host) {
  AlgorithmInfo guarded = info;
  guarded.create = [info, host](const Options& options) { return Create(info, host, options); };
  if (info.check_layer) {
    guarded.check_layer = [info, host](const Options& options, const Layer& layer) {
      return host->Run(OnLayer(layer),
                       [info, options, layer] { return info.check_layer(options, layer); });
    };
  }
  if (info.check_layers) {
    guarded.check_layers = [info, host](const Options& options,
                                        absl::Span<const Layer* const> layers) {
      std::vector<Layer> own;
      for (const Layer* layer : layers) own.push_back(*layer);
      return host->Run(options.path(), [info, options, own = std::move(own)] {
        std::vector<const Layer*> pointers;
        for (const Layer& layer : own) pointers.push_back(&layer);
        return info.check_layers(options, pointers);
      });
    };
  }
  return guarded;
}

}  // namespace nni_compression::server
