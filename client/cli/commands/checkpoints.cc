// .safetensors checkpoints, compressed from disk to disk.
#include <cstdio>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/cli/command_line/flags.h"
#include "client/cli/commands/commands.h"
#include "client/cli/commands/connection.h"
#include "client/cli/compress.h"
#include "client/cli/export.h"
#include "client/cli/safetensors.h"

namespace nni_compression::cli {
namespace {

constexpr char kConfigFooter[] =
    R"(FILE holds a config_list such as
  [{"sparsity": 0.8, "op_types": ["default"]},
   {"exclude": true, "op_names": ["classifier.weight"]}]
where "default" is every tensor *.weight with two or more dimensions and op_names are the names of
tensors in MODEL. A rule with neither matches all tensors of two or more dimensions. The last rule
that matches a tensor wins. All other tensors stay as they were.)";

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

// Adds what says where a result goes.
template <typename Job>
void AddOutputFlags(CLI::App& app, Job* job) {
  AddText(app, "-o", "DIR", &job->output_directory, "output directory, created if it is missing")
      ->required();
  AddSwitch(app, "--overwrite", &job->overwrite, "replaces files of earlier results in DIR");
  AddChoice(app, "--format", "FORMAT", &job->format, Formats(), "what is written to DIR");
}

// prune or quantize.
template <v1::AlgorithmKind kind>
class CompressCommand : public ServerCommand {
 public:
  explicit CompressCommand(CLI::App& app) : ServerCommand(app) {
    job_.kind = kind;
    AddText(app, "MODEL", "FILE", &job_.input_path, "the .safetensors file to compress")
        ->required();
    AddText(app, "--algorithm", "NAME", &job_.algorithm,
            "name of the algorithm; `compressionctl algorithms` lists them")
        ->required();
    AddText(app, "--config", "FILE", &job_.config_path, "JSON file with the config_list")
        ->required();
    AddOutputFlags(app, &job_);
    AddNumber(app, "--epoch", &job_.epoch,
              "epoch that the algorithm is set to (default: where its rules end)");
    AddNumber(app, "--step", &job_.step,
              "training step that the algorithm is set to (default: where quantization begins)");
    AddLabels(app, &job_.labels, "labels of the session");
    app.footer(kConfigFooter);
  }

  int RunWith(const Client& client, const Output& out) override {
    if (!out.json()) job_.progress = stderr;
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
            "the .safetensors file; not needed for --format=masks");
    AddText(app, "--session", "ID", &job_.session_id, "id of the session, a trainer's for example")
        ->required();
    AddOutputFlags(app, &job_);
  }

  absl::Status Check() const override {
    if (!job_.input_path.empty() || job_.format == "masks") return absl::OkStatus();
    return absl::InvalidArgumentError("export needs MODEL unless --format is masks");
  }

  int RunWith(const Client& client, const Output& out) override {
    if (!out.json()) job_.progress = stderr;
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
  line.Add<CompressCommand<v1::ALGORITHM_KIND_PRUNER>>(kHeading, "prune",
                                                       "prunes a .safetensors checkpoint");
  line.Add<CompressCommand<v1::ALGORITHM_KIND_QUANTIZER>>(kHeading, "quantize",
                                                          "quantizes a .safetensors checkpoint");
  line.Add<ExportCommand>(kHeading, "export",
                          "applies the masks or quantization parameters of a live session to a "
                          "checkpoint");
}

}  // namespace nni_compression::cli
