// config.json of a model in Hugging Face's form.
#ifndef NNI_COMPRESSION_CLIENT_CLI_CHECKPOINTS_MODEL_CONFIG_H_
#define NNI_COMPRESSION_CLIENT_CLI_CHECKPOINTS_MODEL_CONFIG_H_

#include <cstddef>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace nni_compression::cli {

// Immutable; thread-safe.
class ModelConfig {
 public:
  // INVALID_ARGUMENT unless it is an object; NaN and Infinity, which Python writes, are numbers.
  static absl::StatusOr<ModelConfig> Parse(std::string text);

  // Empty when it has none.
  const std::string& model_type() const { return model_type_; }
  // The method by which the model is quantized already; empty when it is not.
  const std::string& quant_method() const { return quant_method_; }

  // The text with the only key of `exported`, {"quantization_config": ...}, at its end, or in place
  // of a null, and the rest as it was, byte for byte. The names of layers in it become patterns
  // that find them in every class that the model is loaded as. FAILED_PRECONDITION for a model that
  // is quantized.
  absl::StatusOr<std::string> WithQuantization(absl::string_view exported) const;

 private:
  std::string text_;
  bool empty_ = false;
  std::optional<size_t> null_;  // where "quantization_config" is null
  std::string model_type_;
  std::string quant_method_;
};

}  // namespace nni_compression::cli

#endif  // NNI_COMPRESSION_CLIENT_CLI_CHECKPOINTS_MODEL_CONFIG_H_
