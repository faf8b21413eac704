#include "client/cli/export.h"

#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <map>
#include <set>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/cli/checkpoints/checkpoint_sink.h"
#include "client/cli/checkpoints/model_sink.h"
#include "client/cli/checkpoints/output_folder.h"
#include "client/cli/format.h"

namespace nni_compression::cli {
namespace {

constexpr int64_t kOneFile = int64_t{1} << 53;  // bytes of a shard
constexpr char kMaxShardBytes[] = "max_shard_bytes";
constexpr char kCompressedTensors[] = "compressed-tensors";

// Whether the file of the format has all tensors of the input, most of which are not sent.
bool IsCompleted(const std::string& format) {
  return format == "safetensors" || format == "sparse" || format == kCompressedTensors;
}

// Whether weights may be in several files.
bool HasShards(const std::string& format) {
  return format == "safetensors" || format == kCompressedTensors;
}

// Tensor -> layer, for the weights of compressed layers.
std::map<std::string, std::string> LayersByTensor(const Checkpoint& checkpoint,
                                                  const v1::Plan& plan) {
  std::set<std::string> bound, compressed;
  for (const v1::LayerPlan& layer : plan.layers()) {
    bound.insert(layer.name());
    if (layer.compressed()) compressed.insert(layer.name());
  }
  std::map<std::string, std::string> layers;
  for (const FileTensor& tensor : checkpoint.header().tensors) {
    std::string layer = tensor.name;
    if (bound.count(layer) == 0 && absl::EndsWith(layer, kWeightSuffix)) {
      layer.resize(layer.size() - (sizeof(kWeightSuffix) - 1));
    }
    if (compressed.count(layer) != 0) layers.emplace(tensor.name, std::move(layer));
  }
  return layers;
}

std::vector<FileTensor> InOrder(const Checkpoint& checkpoint) {
  std::vector<FileTensor> tensors = checkpoint.header().tensors;
  const CheckpointOrder order(checkpoint.header());
  std::sort(tensors.begin(), tensors.end(),
            [&](const FileTensor& a, const FileTensor& b) { return order.Before(a, b); });
  return tensors;
}

Tensor ToTensor(const Checkpoint& checkpoint, const FileTensor& tensor, std::string name) {
  return {std::move(name), *ToDataType(tensor.dtype), tensor.shape, checkpoint.bytes(tensor)};
}

// All tensors of the file, for formats that only the server can write.
absl::StatusOr<std::vector<Tensor>> AllTensors(const Checkpoint& checkpoint,
                                               const std::map<std::string, std::string>& layers) {
  std::vector<Tensor> tensors;
  for (const FileTensor& tensor : checkpoint.header().tensors) {
    if (!ToDataType(tensor.dtype) || tensor.begin == tensor.end) {
      return absl::InvalidArgumentError(absl::StrCat(
          "tensor ", tensor.name, " is ", tensor.dtype, " ", FormatShape(tensor.shape),
          "; the service does not support this dtype, or there are no elements: use the "
          "format safetensors or sparse"));
    }
    const auto layer = layers.find(tensor.name);
    tensors.push_back(
        ToTensor(checkpoint, tensor, layer == layers.end() ? tensor.name : layer->second));
  }
  return tensors;
}

ExistingFiles Existing(const OutputJob& job) {
  return job.overwrite ? ExistingFiles::kReplace : ExistingFiles::kKeep;
}

absl::StatusOr<DirectorySink> OutputOf(const OutputJob& job) {
  return DirectorySink::Create(job.directory, Existing(job));
}

// The error, with advice about existing files.
absl::Status Failed(const absl::Status& status, const OutputJob& job) {
  if (status.code() != absl::StatusCode::kAlreadyExists || job.overwrite) return status;
  return absl::AlreadyExistsError(
      absl::StrCat(status.message(),
                   "; choose another directory, or replace an earlier result with --overwrite"));
}

absl::StatusOr<ExportResult> Commit(DirectorySink& directory, const OutputJob& job) {
  auto files = directory.Commit();
  if (!files.ok()) return Failed(files.status(), job);
  ExportResult result;
  result.files = *std::move(files);
  result.warnings = directory.warnings();
  return result;
}

absl::StatusOr<ExportResult> ExportMasks(const Session& session, const OutputJob& job) {
  auto directory = OutputOf(job);
  if (!directory.ok()) return directory.status();
  absl::Status exported = session.Export(job.format, {}, *directory, job.options.dump());
  if (!exported.ok()) return Failed(exported, job);
  return Commit(*directory, job);
}

// Whether the result is a folder as a whole, or files in one.
bool WritesFolder(const Model& model, const OutputJob& job) {
  return IsCompleted(job.format) && (!model.files.folder.empty() || job.max_shard_bytes > 0);
}

// Runs `write`, which streams the export into a sink, with one that makes a folder of the model.
absl::StatusOr<ExportResult> ExportFolder(
    const Model& model, const OutputJob& job,
    const std::function<absl::Status(FileSink& sink)>& write) {
  auto folder = OutputFolder::Create(job.directory, Existing(job), PermissionsOf(model.files));
  if (!folder.ok()) return Failed(folder.status(), job);
  ModelSinkOptions options;
  options.stem = model.files.stem;
  options.format = job.format;
  options.config = model.config;
  options.tied = model.checkpoint.tied();
  if (model.files.index) options.index_metadata = model.files.index->metadata;
  if (HasShards(job.format)) {
    options.max_shard_bytes = job.max_shard_bytes;
    if (options.max_shard_bytes == 0 && model.files.weights.size() > 1) {
      options.max_shard_bytes = model.checkpoint.largest_file();
    }
  }
  ModelSink sink(*folder, std::move(options));
  if (absl::Status written = write(sink); !written.ok()) return written;

  ExportResult result;
  for (const std::string& name : model.files.others) {
    if (folder->Has(name)) continue;  // the config
    absl::Status copied = folder->Copy(model.files.folder, name);
    if (!copied.ok()) return copied;
    result.copied.push_back(name);
  }
  if (absl::Status committed = folder->Commit(); !committed.ok()) return Failed(committed, job);
  for (const std::string& name : sink.files()) result.files.push_back(folder->PathOf(name));
  result.not_copied = model.files.left_out;
  result.warnings = sink.warnings();
  return result;
}

// A single file is not a model as a whole, but next to other shards, or to an index, its result
// would be taken for one.
absl::Status CheckOutputOfFile(const std::string& input, const Model& model,
                               const OutputJob& output) {
  if (!IsCompleted(output.format)) return absl::OkStatus();
  namespace fs = std::filesystem;
  const bool replaces = WritesFolder(model, output);
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(output.directory, error)) {
    const std::string name = entry.path().filename().string();
    if (replaces && fs::equivalent(entry.path(), input, error)) {
      return absl::InvalidArgumentError(absl::StrCat(
          output.directory, " has the input ", input,
          " in it; choose another directory, or compress the model as a whole, by its folder"));
    }
    // An earlier result in shards is replaced as a whole by another one.
    if (!replaces && absl::EndsWith(name, absl::StrCat(kSafetensorsSuffix, kIndexSuffix))) {
      return absl::InvalidArgumentError(
          absl::StrCat(output.directory, " has the index of a model, ", name,
                       ", which the output would not belong to; choose another directory"));
    }
  }
  return absl::OkStatus();
}

// Files are renamed to their names, so the input would be lost.
absl::Status CheckOutput(const Model& model, const OutputJob& output) {
  namespace fs = std::filesystem;
  const auto refuse = [](const std::string& path) {
    return absl::InvalidArgumentError(
        absl::StrCat("the output would replace the input ", path, "; choose another directory"));
  };
  for (const std::string& input_path : model.files.weights) {
    for (const char* name : {"model.safetensors", "model.sparse.safetensors"}) {
      struct stat input, result;
      const std::string path = absl::StrCat(output.directory, "/", name);
      if (stat(input_path.c_str(), &input) == 0 && stat(path.c_str(), &result) == 0 &&
          input.st_dev == result.st_dev && input.st_ino == result.st_ino) {
        return refuse(path);
      }
    }
  }
  if (model.files.folder.empty()) {
    return CheckOutputOfFile(model.files.weights[0], model, output);
  }
  std::error_code error;
  const fs::path folder = fs::canonical(model.files.folder, error);
  const fs::path directory = fs::weakly_canonical(fs::absolute(output.directory), error);
  if (directory == folder) return refuse(model.files.folder);
  if (!error && absl::StartsWith(directory.string(), folder.string() + "/")) {
    return absl::InvalidArgumentError(absl::StrCat(output.directory, " is in the model's folder ",
                                                   model.files.folder,
                                                   "; choose a directory outside of it"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Model> OpenModel(const std::string& path, const OutputJob& output) {
  auto files = FindModel(path);
  if (!files.ok()) return files.status();
  auto checkpoint = Checkpoint::Open(*files);
  if (!checkpoint.ok()) return checkpoint.status();
  Model model{*std::move(files), *std::move(checkpoint), std::nullopt};
  if (absl::Status checked = CheckOutput(model, output); !checked.ok()) return checked;
  if (WritesFolder(model, output)) {
    absl::Status checked = OutputFolder::Check(output.directory, Existing(output));
    if (!checked.ok()) return Failed(checked, output);
  }
  const auto& others = model.files.others;
  if (std::find(others.begin(), others.end(), kConfigFile) == others.end()) return model;
  const std::string config_path = absl::StrCat(model.files.folder, "/", kConfigFile);
  auto text = ReadText(config_path);
  if (!text.ok()) return text.status();
  auto config = ModelConfig::Parse(*std::move(text));
  if (!config.ok()) {
    return absl::Status(config.status().code(),
                        absl::StrCat(config_path, ": ", config.status().message()));
  }
  if (output.format == kCompressedTensors) {
    const auto quantized = config->WithQuantization(R"({"quantization_config": {}})");
    if (!quantized.ok()) {
      return absl::Status(quantized.status().code(),
                          absl::StrCat(config_path, ": ", quantized.status().message()));
    }
  }
  model.config = *std::move(config);
  return model;
}

std::vector<Tensor> WeightsOf(const Checkpoint& checkpoint, const v1::Plan& plan) {
  const auto layers = LayersByTensor(checkpoint, plan);
  std::vector<Tensor> weights;
  for (const FileTensor& tensor : InOrder(checkpoint)) {
    const auto layer = layers.find(tensor.name);
    if (layer != layers.end()) weights.push_back(ToTensor(checkpoint, tensor, layer->second));
  }
  return weights;
}

int64_t TotalBytes(absl::Span<const Tensor> tensors) {
  int64_t bytes = 0;
  for (const Tensor& tensor : tensors) bytes += static_cast<int64_t>(tensor.bytes.size());
  return bytes;
}

CallOptions SendingOptions(ProgressBar& bar, const Checkpoint& checkpoint, int64_t before,
                           int64_t total) {
  CallOptions options;
  options.progress = [&bar, &checkpoint, before, total,
                      sent = int64_t{0}](const Progress& progress) mutable {
    bar.Update(before + progress.sent_bytes, total);
    checkpoint.AfterReading(std::max<int64_t>(0, progress.sent_bytes - sent));
    sent = progress.sent_bytes;  // less than before where the call is retried
  };
  return options;
}

absl::StatusOr<ExportResult> ExportCheckpoint(const Session& session, const Model& model,
                                              const OutputJob& job) {
  if (job.format == "masks") return ExportMasks(session, job);
  const Checkpoint& checkpoint = model.checkpoint;
  const auto layers = LayersByTensor(checkpoint, session.plan());
  std::vector<Tensor> tensors = WeightsOf(checkpoint, session.plan());
  if (job.format == "pth") {
    auto all = AllTensors(checkpoint, layers);
    if (!all.ok()) return all.status();
    tensors = *std::move(all);
  }
  nlohmann::json options = job.options;
  options["names"] = nlohmann::json::object();
  std::set<std::string> sent;
  for (const auto& [tensor, layer] : layers) {
    sent.insert(tensor);
    if (tensor != layer) options["names"][layer] = tensor;
  }
  // The client adds tensors of its own to the file.
  if (job.format == "safetensors") options[kMaxShardBytes] = kOneFile;

  ProgressBar bar(job.progress, "export");
  const auto write = [&](FileSink& sink) {
    CheckpointSink completed(checkpoint, sent, sink);
    FileSink& target = IsCompleted(job.format) ? static_cast<FileSink&>(completed) : sink;
    absl::Status exported = session.Export(job.format, tensors, target, options.dump(),
                                           SendingOptions(bar, checkpoint, 0, TotalBytes(tensors)));
    return exported.ok() ? exported : Failed(exported, job);
  };
  absl::StatusOr<ExportResult> result;
  if (WritesFolder(model, job)) {
    result = ExportFolder(model, job, write);
  } else {
    auto directory = OutputOf(job);
    if (!directory.ok()) return directory.status();
    if (absl::Status written = write(*directory); !written.ok()) return written;
    result = Commit(*directory, job);
  }
  if (!result.ok()) return result;
  result->sent_bytes = TotalBytes(tensors);
  return result;
}

absl::StatusOr<ExportResult> Export(const Client& client, const ExportJob& job) {
  const auto session = client.Join(job.session_id);
  if (!session.ok()) return session.status();
  if (job.input_path.empty()) return ExportMasks(*session, job.output);
  const auto model = OpenModel(job.input_path, job.output);
  if (!model.ok()) return model.status();
  return ExportCheckpoint(*session, *model, job.output);
}

nlohmann::json ToJson(const ExportResult& result) {
  return {{"files", result.files},
          {"copied", result.copied},
          {"not_copied", result.not_copied},
          {"warnings", result.warnings},
          {"sent_bytes", result.sent_bytes}};
}

std::string ToText(const ExportResult& result) {
  std::string text;
  for (const std::string& warning : result.warnings) {
    absl::StrAppend(&text, "warning: ", Printable(warning), "\n");
  }
  return text + FilesText(result);
}

std::string FilesText(const ExportResult& result) {
  std::string text;
  for (const std::string& file : result.files) {
    absl::StrAppend(&text, "wrote ", Printable(file), "\n");
  }
  if (!result.copied.empty()) {
    absl::StrAppend(&text, "copied ", Printable(absl::StrJoin(result.copied, ", ")), "\n");
  }
  if (!result.not_copied.empty()) {
    absl::StrAppend(&text, "not copied, since they may hold the old weights: ",
                    Printable(absl::StrJoin(result.not_copied, ", ")), "\n");
  }
  return text;
}

}  // namespace nni_compression::cli
