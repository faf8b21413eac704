// What a session does not take on trust from an algorithm, which may be a plugin or a script.
// Errors are INTERNAL, as the algorithm is to blame, and name it. The functions that call an
// algorithm are the only way to its answers about weights and activations.
#ifndef NNI_COMPRESSION_COMPRESSION_SESSION_CHECK_ANSWER_H_
#define NNI_COMPRESSION_COMPRESSION_SESSION_CHECK_ANSWER_H_

#include <exception>
#include <new>
#include <optional>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "compression/algorithms/algorithm.h"
#include "compression/messages/exception_text.h"

namespace nni_compression::compression {

// LibTorch and allocations throw, and plugins may.
template <class T>
absl::StatusOr<T> CatchAll(absl::FunctionRef<absl::StatusOr<T>()> compute) {
  try {
    return compute();
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError("out of memory");
  } catch (const std::exception& e) {
    return absl::InternalError(TextOf(e));
  } catch (...) {
    return absl::InternalError("unknown exception");
  }
}

// The algorithm that answers. For a plugin or script the values are checked, too, which takes a
// pass over them.
struct Answerer {
  std::string algorithm;
  bool loaded = false;
};

// Checks that `create` returned a compressor of the kind in `info`, without traits of the other.
absl::Status CheckKind(const AlgorithmInfo& info, const Compressor* compressor);

// Checks that the groups of a quantizer, if it has them, fit the layer.
absl::Status CheckGroups(absl::string_view algorithm, const Traits& traits, const Layer& layer);

absl::Status CheckMask(absl::string_view algorithm, const Layer& layer, const Mask& mask);

// Calls the quantizer for this layer and checks the answer.
absl::StatusOr<QuantizedWeight> CheckedQuantize(
    const Answerer& answerer, const Quantizer& quantizer, const Layer& layer, QuantizeReply reply,
    absl::FunctionRef<absl::StatusOr<QuantizedWeight>()> call);

absl::StatusOr<ActivationAnswer> CheckedActivation(const Answerer& answerer,
                                                   const Quantizer& quantizer, const Layer& layer,
                                                   Activation activation, Clock clock,
                                                   const LayerState& state);

// nullopt unless the value is in [0, 1].
std::optional<double> CheckedTarget(const Pruner& pruner, Clock clock);

// Checks that the state stays in proportion to the weight.
absl::Status CheckState(absl::string_view algorithm, const Layer& layer, const LayerState& state);

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_SESSION_CHECK_ANSWER_H_
