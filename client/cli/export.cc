#include "client/cli/export.h"

#include <sys/stat.h>

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/cli/checkpoint_sink.h"
#include "client/cli/format.h"
#include "client/cli/progress.h"

namespace nni_compression::cli {
namespace {

constexpr int64_t kOneFile = int64_t{1} << 53;  // bytes of a shard

// Tensor -> layer, for the weights of compressed layers.
std::map<std::string, std::string> LayersByTensor(const SafetensorsFile& file,
                                                  const v1::Plan& plan) {
  std::set<std::string> bound, compressed;
  for (const v1::LayerPlan& layer : plan.layers()) {
    bound.insert(layer.name());
    if (layer.compressed()) compressed.insert(layer.name());
  }
  std::map<std::string, std::string> layers;
  for (const FileTensor& tensor : file.header().tensors) {
    std::string layer = tensor.name;
    if (bound.count(layer) == 0 && absl::EndsWith(layer, kWeightSuffix)) {
      layer.resize(layer.size() - (sizeof(kWeightSuffix) - 1));
    }
    if (compressed.count(layer) != 0) layers.emplace(tensor.name, std::move(layer));
  }
  return layers;
}

std::vector<FileTensor> InOrder(const SafetensorsFile& file) {
  std::vector<FileTensor> tensors = file.header().tensors;
  const CheckpointOrder order(file.header());
  std::sort(tensors.begin(), tensors.end(),
            [&](const FileTensor& a, const FileTensor& b) { return order.Before(a, b); });
  return tensors;
}

Tensor ToTensor(const SafetensorsFile& file, const FileTensor& tensor, std::string name) {
  return {std::move(name), *ToDataType(tensor.dtype), tensor.shape, file.bytes(tensor)};
}

// All tensors of the file, for formats that only the server can write.
absl::StatusOr<std::vector<Tensor>> AllTensors(const SafetensorsFile& file,
                                               const std::map<std::string, std::string>& layers) {
  std::vector<Tensor> tensors;
  for (const FileTensor& tensor : file.header().tensors) {
    if (!ToDataType(tensor.dtype) || tensor.begin == tensor.end) {
      return absl::InvalidArgumentError(absl::StrCat(
          "tensor ", tensor.name, " is ", tensor.dtype, " ", FormatShape(tensor.shape),
          "; the service does not support this dtype, or there are no elements: use the "
          "format safetensors or sparse"));
    }
    const auto layer = layers.find(tensor.name);
    tensors.push_back(ToTensor(file, tensor, layer == layers.end() ? tensor.name : layer->second));
  }
  return tensors;
}

absl::StatusOr<DirectorySink> OutputOf(const ExportJob& job) {
  return DirectorySink::Create(job.output_directory,
                               job.overwrite ? ExistingFiles::kReplace : ExistingFiles::kKeep);
}

// The error, with advice about existing files.
absl::Status Failed(const absl::Status& status, const ExportJob& job) {
  if (status.code() != absl::StatusCode::kAlreadyExists || job.overwrite) return status;
  return absl::AlreadyExistsError(absl::StrCat(
      status.message(),
      "; choose another directory, one for each shard of a model, or replace it with --overwrite"));
}

absl::StatusOr<ExportResult> Commit(DirectorySink& directory, const ExportJob& job,
                                    absl::Span<const Tensor> sent) {
  auto files = directory.Commit();
  if (!files.ok()) return Failed(files.status(), job);
  ExportResult result{*std::move(files), directory.warnings(), 0};
  for (const Tensor& tensor : sent) result.sent_bytes += tensor.bytes.size();
  return result;
}

absl::StatusOr<ExportResult> ExportMasks(const Session& session, const ExportJob& job) {
  auto directory = OutputOf(job);
  if (!directory.ok()) return directory.status();
  absl::Status exported = session.Export(job.format, {}, *directory);
  if (!exported.ok()) return Failed(exported, job);
  return Commit(*directory, job, {});
}

}  // namespace

std::vector<Tensor> WeightsOf(const SafetensorsFile& file, const v1::Plan& plan) {
  const auto layers = LayersByTensor(file, plan);
  std::vector<Tensor> weights;
  for (const FileTensor& tensor : InOrder(file)) {
    const auto layer = layers.find(tensor.name);
    if (layer != layers.end()) weights.push_back(ToTensor(file, tensor, layer->second));
  }
  return weights;
}

absl::StatusOr<ExportResult> ExportCheckpoint(const Session& session, const SafetensorsFile& file,
                                              const ExportJob& job) {
  if (job.format == "masks") return ExportMasks(session, job);
  const auto layers = LayersByTensor(file, session.plan());
  std::vector<Tensor> tensors = WeightsOf(file, session.plan());
  if (job.format == "pth") {
    auto all = AllTensors(file, layers);
    if (!all.ok()) return all.status();
    tensors = *std::move(all);
  }
  nlohmann::json options = {{"names", nlohmann::json::object()}};
  std::set<std::string> sent;
  for (const auto& [tensor, layer] : layers) {
    sent.insert(tensor);
    if (tensor != layer) options["names"][layer] = tensor;
  }
  // The client adds tensors of its own to the file.
  if (job.format == "safetensors") options["max_shard_bytes"] = kOneFile;

  auto directory = OutputOf(job);
  if (!directory.ok()) return directory.status();
  CheckpointSink checkpoint(file, std::move(sent), *directory);
  const bool completed =
      job.format == "safetensors" || job.format == "sparse" || job.format == "compressed-tensors";
  FileSink& sink = completed ? static_cast<FileSink&>(checkpoint) : *directory;
  ProgressBar bar(job.progress, "export");
  absl::Status exported =
      session.Export(job.format, tensors, sink, options.dump(), WithProgress(bar));
  if (!exported.ok()) return Failed(exported, job);
  return Commit(*directory, job, tensors);
}

absl::StatusOr<ExportResult> Export(const Client& client, const ExportJob& job) {
  const auto session = client.Join(job.session_id);
  if (!session.ok()) return session.status();
  if (job.input_path.empty()) return ExportMasks(*session, job);
  const auto file = SafetensorsFile::Open(job.input_path);
  if (!file.ok()) return file.status();
  absl::Status checked = CheckOutput(job.input_path, job.output_directory);
  if (!checked.ok()) return checked;
  return ExportCheckpoint(*session, *file, job);
}

nlohmann::json ToJson(const ExportResult& result) {
  return {
      {"files", result.files}, {"warnings", result.warnings}, {"sent_bytes", result.sent_bytes}};
}

std::string ToText(const ExportResult& result) {
  std::string text;
  for (const std::string& warning : result.warnings) {
    absl::StrAppend(&text, "warning: ", Printable(warning), "\n");
  }
  for (const std::string& file : result.files) {
    absl::StrAppend(&text, "wrote ", Printable(file), "\n");
  }
  return text;
}

// Files are renamed to their names, so the input would be lost.
absl::Status CheckOutput(const std::string& input_path, const std::string& output_directory) {
  for (const char* name : {"model.safetensors", "model.sparse.safetensors"}) {
    struct stat input, output;
    const std::string path = absl::StrCat(output_directory, "/", name);
    if (stat(input_path.c_str(), &input) == 0 && stat(path.c_str(), &output) == 0 &&
        input.st_dev == output.st_dev && input.st_ino == output.st_ino) {
      return absl::InvalidArgumentError(
          absl::StrCat("the output would replace the input ", path, "; choose another directory"));
    }
  }
  return absl::OkStatus();
}

}  // namespace nni_compression::cli
