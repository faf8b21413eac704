#include "client/cli/checkpoints/model_files.h"

#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "client/cli/checkpoints/file_error.h"
#include "client/cli/checkpoints/safetensors.h"

namespace nni_compression::cli {
namespace {

namespace fs = std::filesystem;

constexpr std::streamsize kMaxTextBytes = 100'000'000;
constexpr char kModelFile[] = "model.safetensors";

// Suffixes of weights, and of states of a training, which are as large.
constexpr std::array<absl::string_view, 17> kWeightSuffixes = {
    ".safetensors", ".bin",     ".pt",       ".pth",       ".ckpt",     ".h5",
    ".keras",       ".msgpack", ".ot",       ".onnx",      ".gguf",     ".ggml",
    ".tflite",      ".npz",     ".pdparams", ".onnx_data", ".onnx.data"};
constexpr std::array<absl::string_view, 5> kOtherFormatFolders = {"onnx", "openvino", "coreml",
                                                                  "original", "gguf"};
constexpr char kTrainingArguments[] = "training_args.bin";  // no weights
constexpr char kTrainingCheckpoint[] = "checkpoint-";

template <typename... Args>
absl::Status Refused(const Args&... args) {
  return absl::InvalidArgumentError(absl::StrCat(args...));
}

bool IsInside(const fs::path& path, const fs::path& folder) {
  const auto [end, unused] = std::mismatch(folder.begin(), folder.end(), path.begin(), path.end());
  return end == folder.end();
}

// Links may stay in the folder, or, as in Hugging Face's cache, lead from REPO/snapshots/REVISION
// to REPO/blobs. Others could copy any file of this host into a model that is then published.
absl::Status CheckLink(const fs::path& path, const fs::path& folder) {
  std::error_code error;
  const fs::path real = fs::canonical(path, error);
  if (error) return FileError("open", path, error.value());
  const fs::path root = fs::canonical(folder, error);
  if (error) return FileError("open", folder, error.value());
  if (IsInside(real, root)) return absl::OkStatus();
  const fs::path snapshots = root.parent_path();
  if (snapshots.filename() == "snapshots" && IsInside(real, snapshots.parent_path() / "blobs")) {
    return absl::OkStatus();
  }
  return Refused(path.string(), " is a link to ", real.string(), ", which is not in the folder");
}

bool IsWeights(const std::string& name) {
  if (name == kTrainingArguments) return false;
  const absl::string_view file = absl::StripSuffix(name, kIndexSuffix);
  return std::any_of(kWeightSuffixes.begin(), kWeightSuffixes.end(),
                     [&](absl::string_view suffix) { return absl::EndsWith(file, suffix); });
}

bool IsLeftOut(const std::string& folder) {
  return folder[0] == '.' || folder == "__pycache__" ||
         absl::StartsWith(folder, kTrainingCheckpoint) ||
         std::find(kOtherFormatFolders.begin(), kOtherFormatFolders.end(), folder) !=
             kOtherFormatFolders.end();
}

// The folders of modules of a sentence-transformers model, whose weights are no other form of the
// model's.
std::set<std::string> Modules(const fs::path& folder) {
  std::set<std::string> paths;
  const auto text = ReadText((folder / "modules.json").string());
  const auto json = text.ok() ? nlohmann::json::parse(*text, nullptr, /*allow_exceptions=*/false)
                              : nlohmann::json();
  if (!json.is_array()) return paths;
  for (const nlohmann::json& module : json) {
    if (!module.is_object()) continue;
    const auto path = module.find("path");
    if (path != module.end() && path->is_string()) paths.insert(path->get<std::string>());
  }
  return paths;
}

// Sorts the files of a model's folder.
class Lister {
 public:
  explicit Lister(ModelFiles& model) : model_(model), modules_(Modules(model.folder)) {
    for (const std::string& path : model.weights) taken_.insert(fs::path(path).filename());
    if (model.index) taken_.insert(absl::StrCat(model.stem, kSafetensorsSuffix, kIndexSuffix));
  }

  absl::Status List(const std::string& prefix = "", bool is_module = false) {
    std::error_code error;
    fs::directory_iterator entries(fs::path(model_.folder) / prefix, error);
    if (error) return FileError("list", fs::path(model_.folder) / prefix, error.value());
    for (const fs::directory_entry& entry : entries) {
      absl::Status added = Add(entry, prefix, is_module);
      if (!added.ok()) return added;
    }
    return absl::OkStatus();
  }

 private:
  absl::Status Add(const fs::directory_entry& entry, const std::string& prefix, bool is_module) {
    const std::string file = entry.path().filename().string();
    const std::string name = prefix + file;
    std::error_code error;
    const fs::file_status status = entry.status(error);
    if (error && status.type() == fs::file_type::none)
      return FileError("stat", entry.path(), error.value());
    if (status.type() == fs::file_type::directory) {
      if (IsLeftOut(file)) {
        model_.left_out.push_back(name + "/");
        return absl::OkStatus();
      }
      if (entry.is_symlink(error)) {
        return Refused(entry.path().string(), " is a link to a folder; it must be a folder");
      }
      return List(name + "/", is_module || modules_.count(name) != 0);
    }
    if (prefix.empty() && taken_.count(file) != 0) return absl::OkStatus();
    const bool regular = status.type() == fs::file_type::regular;
    if (!regular && !entry.is_symlink(error)) {
      model_.left_out.push_back(name);
      return absl::OkStatus();
    }
    if (IsWeights(file) && !is_module) {
      model_.left_out.push_back(name);
      return absl::OkStatus();
    }
    if (absl::Status linked = CheckLink(entry.path(), model_.folder); !linked.ok()) return linked;
    model_.others.push_back(name);
    return absl::OkStatus();
  }

  ModelFiles& model_;
  const std::set<std::string> modules_;
  std::set<std::string> taken_;  // the weights that are compressed
};

absl::StatusOr<ModelFiles> Complete(ModelFiles model) {
  for (const std::string& path : model.weights) {
    absl::Status linked = CheckLink(path, model.folder);
    if (!linked.ok()) return linked;
  }
  absl::Status listed = Lister(model).List();
  if (!listed.ok()) return listed;
  std::sort(model.others.begin(), model.others.end());
  std::sort(model.left_out.begin(), model.left_out.end());
  return model;
}

absl::StatusOr<ModelFiles> FromIndex(const fs::path& path) {
  const auto text = ReadText(path.string());
  if (!text.ok()) return text.status();
  auto index = ParseIndex(*text);
  if (!index.ok()) return Refused(path.string(), ": ", index.status().message());
  ModelFiles model;
  model.folder = path.has_parent_path() ? path.parent_path().string() : ".";
  model.stem = std::string(absl::StripSuffix(
      absl::StripSuffix(path.filename().string(), kIndexSuffix), kSafetensorsSuffix));
  for (const std::string& file : index->Files()) {
    const fs::path shard = fs::path(model.folder) / file;
    std::error_code error;
    if (!fs::exists(shard, error)) {
      const auto entry = std::find_if(index->weight_map.begin(), index->weight_map.end(),
                                      [&](const auto& each) { return each.second == file; });
      return absl::NotFoundError(absl::StrCat(path.string(), ": weight_map[",
                                              nlohmann::json(entry->first).dump(), "] is ", file,
                                              ", and there is no such file"));
    }
    model.weights.push_back(shard.string());
  }
  model.index = *std::move(index);
  return Complete(std::move(model));
}

absl::Status NoWeights(const std::string& folder) {
  std::vector<std::string> found;
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, error)) {
    if (IsWeights(entry.path().filename())) found.push_back(entry.path().filename());
  }
  std::sort(found.begin(), found.end());
  if (found.size() > 5) found.resize(5);
  return Refused(folder, " has neither ", kModelFile, " nor ", kModelFile, kIndexSuffix,
                 found.empty() ? "" : absl::StrCat(", but ", absl::StrJoin(found, ", ")),
                 "; save the model with save_pretrained, or name a .safetensors file");
}

}  // namespace

absl::StatusOr<ModelFiles> FindModel(const std::string& path) {
  std::error_code error;
  if (!fs::is_directory(path, error)) {
    if (absl::EndsWith(path, ".json")) return FromIndex(path);
    ModelFiles model;
    model.weights = {path};
    return model;
  }
  const fs::path file = fs::path(path) / kModelFile;
  const fs::path index = absl::StrCat(file.string(), kIndexSuffix);
  const bool has_file = fs::exists(file, error), has_index = fs::exists(index, error);
  if (has_file && has_index) {
    return Refused(path, " has ", kModelFile, " and ", kModelFile, kIndexSuffix,
                   "; remove the one that is not the model, or name the other");
  }
  if (has_index) return FromIndex(index);
  if (!has_file) return NoWeights(path);
  ModelFiles model;
  model.folder = path;
  model.weights = {file.string()};
  return Complete(std::move(model));
}

std::optional<mode_t> ModeOf(const std::string& path) {
  struct stat status;
  if (stat(path.c_str(), &status) != 0) return std::nullopt;
  return status.st_mode & ACCESSPERMS;
}

Permissions PermissionsOf(const ModelFiles& model) {
  Permissions permissions;
  for (const std::string& path : model.weights) {
    const auto mode = ModeOf(path);
    if (mode) permissions.files = permissions.files.value_or(ACCESSPERMS) & *mode;
  }
  if (!model.folder.empty()) {
    permissions.folder = ModeOf(model.folder).value_or(permissions.folder);
  }
  return permissions;
}

absl::StatusOr<std::string> ReadText(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) return FileError("open", path);
  const std::streamsize size = file.tellg();
  if (size < 0) return FileError("read", path);
  if (size > kMaxTextBytes) return Refused(path, " is larger than ", kMaxTextBytes, " bytes");
  std::string text(size, '\0');
  file.seekg(0);
  file.read(text.data(), size);
  if (!file) return FileError("read", path);
  return text;
}

}  // namespace nni_compression::cli
