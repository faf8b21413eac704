// What a session does not take on trust from an algorithm, which may be a plugin or a script.
// Errors are INTERNAL, as the algorithm is to blame, and name it.
#ifndef NNI_COMPRESSION_COMPRESSION_CHECK_ANSWER_H_
#define NNI_COMPRESSION_COMPRESSION_CHECK_ANSWER_H_

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "compression/algorithm.h"

namespace nni_compression::compression {

// An entry of the registry that can be served: named as others are, with options whose names and
// defaults are fine and an example that fits them. INVALID_ARGUMENT otherwise.
absl::Status CheckInfo(const AlgorithmInfo& info);

// That `create` made a compressor of the kind that `info` promises.
absl::Status CheckKind(const AlgorithmInfo& info, const Compressor* compressor);

// That the channel axis of a quantizer is a dimension of the weight, and that groups fit.
absl::Status CheckAxis(absl::string_view algorithm, const Compressor& compressor,
                       const Layer& layer);

absl::Status CheckMask(absl::string_view algorithm, const Layer& layer, const Mask& mask);

absl::Status CheckQuantized(absl::string_view algorithm, const Quantizer& quantizer,
                            const Layer& layer, QuantizeReply reply, const QuantizedWeight& result);

absl::Status CheckActivation(absl::string_view algorithm, const Layer& layer,
                             const ActivationAnswer& answer);

// That what is remembered stays in proportion to the weight.
absl::Status CheckState(absl::string_view algorithm, const Layer& layer, const LayerState& state);

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_CHECK_ANSWER_H_
