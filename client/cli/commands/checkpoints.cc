// .safetensors checkpoints, compressed from disk to disk.
#include <cstdio>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/cli/checkpoints/safetensors.h"
#include "client/cli/command_line/flags.h"
#include "client/cli/commands/commands.h"
#include "client/cli/commands/connection.h"
#include "client/cli/compress.h"
#include "client/cli/export.h"

namespace nni_compression::cli {
namespace {

constexpr char kConfigFooter[] =
    R"(FILE holds a config_list such as
  [{"sparsity": 0.8, "op_types": ["default"]},
   {"exclude": true, "op_names": ["classifier.weight"]}]
where "default" is every tensor *.weight with two or more dimensions, embeddings and output heads
included, and op_names are the names of tensors in MODEL. A rule with neither matches all tensors of
two or more dimensions. The last rule that matches a tensor wins. All other tensors stay as they
were. Where tensors are decided about together, as by global_magnitude, the server needs memory for
all of them at once.

MODEL may be a folder in Hugging Face's form, with model.safetensors, or with shards and
model.safetensors.index.json; or that index. Then DIR becomes such a folder for the formats
safetensors, sparse and compressed-tensors: it gets all other files of MODEL except weights in other
formats, and must not have any files before.)";

constexpr char kModelHelp[] =
    "the .safetensors file to compress, the index of shards, or a folder with either";

const std::vector<Choice>& Formats() {
  static const auto& formats = *new std::vector<Choice>{
      {"safetensors", "model.safetensors, the compressed checkpoint"},
      {"sparse", "model.sparse.safetensors, with kept weights only"},
      {"compressed-tensors", "config.json and model.safetensors with packed quantized values"},
      {"onnx", "model.onnx.safetensors, for nni_compression.onnx.apply"},
      {"pth", "model.pth for torch.load, and masks.pth"},
      {"masks", "masks.safetensors and masks.packed.safetensors"},
      {"report", "report.html and report.json"},
  };
  return formats;
}

std::string WithoutTrailingSlashes(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

// Adds what says where a result goes, and as what.
void AddOutputFlags(CLI::App& app, OutputJob* job) {
  AddText(app, "-o", "DIR", &job->directory, "output directory, created if it is missing")
      ->required()
      ->transform(WithoutTrailingSlashes);
  AddSwitch(app, "--overwrite", &job->overwrite, "replaces files of earlier results in DIR");
  AddChoice(app, "--format", "FORMAT", &job->format, Formats(), "what is written to DIR");
  AddFormatOptions(app, &job->options,
                   "option of the format, such as layout=pack-quantized; may be repeated");
  AddSize(app, "--shard_size", &job->max_shard_bytes,
          "limit for each file of weights, such as 2GB (default: that of MODEL's largest file if "
          "MODEL has several, else none)");
}

// Takes what is not for the server out of the options.
absl::Status CheckOutputFlags(const OutputJob& job) {
  if (job.options.contains("names") || job.options.contains("max_shard_bytes")) {
    return absl::InvalidArgumentError(
        "--option must not be names or max_shard_bytes; for the latter there is --shard_size");
  }
  if (job.max_shard_bytes > 0 && job.format != "safetensors" &&
      job.format != "compressed-tensors") {
    return absl::InvalidArgumentError(
        "--shard_size is for the formats safetensors and compressed-tensors");
  }
  return absl::OkStatus();
}

// prune or quantize.
template <v1::AlgorithmKind kind>
class CompressCommand : public ServerCommand {
 public:
  explicit CompressCommand(CLI::App& app) : ServerCommand(app) {
    job_.kind = kind;
    AddText(app, "MODEL", "FILE", &job_.input_path, kModelHelp)->required();
    AddText(app, "--algorithm", "NAME", &job_.algorithm,
            "name of the algorithm; `compressionctl algorithms` lists them")
        ->required();
    AddText(app, "--config", "FILE", &job_.config_path, "JSON file with the config_list")
        ->required();
    AddOutputFlags(app, &job_.output);
    AddNumber(app, "--epoch", &job_.epoch,
              "epoch that the algorithm is set to (default: where its rules end)");
    AddNumber(app, "--step", &job_.step,
              "training step that the algorithm is set to (default: where quantization begins or "
              "the rules end)");
    AddLabels(app, &job_.labels, "labels of the session");
    app.footer(kConfigFooter);
  }

  absl::Status Check() const override { return CheckOutputFlags(job_.output); }

  int RunWith(const Client& client, const Output& out) override {
    if (!out.json()) job_.output.progress = stderr;
    ExitOnTruncatedInput(out.ErrorLine(absl::DataLossError(
                             absl::StrCat(job_.input_path, " was truncated while it was read"))),
                         kFailed);
    const auto result = Compress(client, job_);
    if (!result.ok()) return out.Fail(result.status());
    int exit_status = out.Print(ToText(*result), ToJson(*result).dump());
    for (const LayerOutcome& layer : result->layers) {
      if (!layer.status.ok()) exit_status = out.Fail(layer.status);
    }
    if (exit_status != kOk && !out.json()) std::fputs("nothing was written\n", stderr);
    return exit_status;
  }

 private:
  CompressJob job_;
};

class ExportCommand : public ServerCommand {
 public:
  explicit ExportCommand(CLI::App& app) : ServerCommand(app) {
    AddText(app, "MODEL", "FILE", &job_.input_path,
            absl::StrCat(kModelHelp, "; not needed for --format=masks"));
    AddText(app, "--session", "ID", &job_.session_id, "id of the session, a trainer's for example")
        ->required();
    AddOutputFlags(app, &job_.output);
  }

  absl::Status Check() const override {
    if (job_.input_path.empty() && job_.output.format != "masks") {
      return absl::InvalidArgumentError("export needs MODEL unless --format is masks");
    }
    return CheckOutputFlags(job_.output);
  }

  int RunWith(const Client& client, const Output& out) override {
    if (!out.json()) job_.output.progress = stderr;
    const auto result = Export(client, job_);
    if (!result.ok()) return out.Fail(result.status());
    return out.Print(ToText(*result), ToJson(*result).dump());
  }

 private:
  ExportJob job_;
};

}  // namespace

void AddCheckpointCommands(CommandLine& line) {
  constexpr char kHeading[] = "Checkpoints";
  line.Add<CompressCommand<v1::ALGORITHM_KIND_PRUNER>>(
      kHeading, "prune", "prunes a .safetensors checkpoint, or a folder with one");
  line.Add<CompressCommand<v1::ALGORITHM_KIND_QUANTIZER>>(
      kHeading, "quantize", "quantizes a .safetensors checkpoint, or a folder with one");
  line.Add<ExportCommand>(kHeading, "export",
                          "applies the masks or quantization parameters of a live session to a "
                          "checkpoint");
}

}  // namespace nni_compression::cli
