// Loads plugins.
#include "compression/extensions/plugin.h"

#include <dlfcn.h>
#include <elf.h>
#include <link.h>

#include <cstdint>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <string>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compression/extensions/loader.h"
#include "compression/messages/suggest.h"

namespace nni_compression::compression {
namespace {

constexpr char kStamp[] = NNI_COMPRESSION_PLUGIN_STAMP;
constexpr size_t kMaxStampBytes = 4096;

using DescribeFunction = void (*)(std::vector<AlgorithmInfo>* algorithms);

template <typename... Parts>
absl::Status Bad(const std::string& file, const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat("plugin ", Quoted(file), parts...));
}

// The dynamic linker maps what the file's headers describe, and crashes on a truncated file.
bool IsCutOff(const std::string& file) {
  std::error_code error;
  const uint64_t size = std::filesystem::file_size(file, error);
  std::ifstream in(file, std::ios::binary);
  ElfW(Ehdr) header;
  if (error || !in.read(reinterpret_cast<char*>(&header), sizeof header) ||
      std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0) {
    return false;  // the linker reports what is wrong
  }
  in.seekg(static_cast<std::streamoff>(header.e_phoff));
  for (int i = 0; i < header.e_phnum; ++i) {
    ElfW(Phdr) segment;
    if (!in.read(reinterpret_cast<char*>(&segment), sizeof segment)) return true;
    if (segment.p_filesz > size || segment.p_offset > size - segment.p_filesz) return true;
  }
  return false;
}

absl::StatusOr<std::vector<AlgorithmInfo>> LoadPlugin(const std::string& file) {
  if (IsCutOff(file)) return Bad(file, " cannot be loaded: the file is truncated");
  // RTLD_LOCAL keeps its symbols private, RTLD_NOW reports missing ones here. Never closed: its
  // objects may live until the end.
  void* const library = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return Bad(file, " cannot be loaded: ", dlerror());
  const auto* const stamp =
      static_cast<const char*>(dlsym(library, "nni_compression_plugin_stamp"));
  const auto describe =
      reinterpret_cast<DescribeFunction>(dlsym(library, "nni_compression_plugin_algorithms"));
  if (stamp == nullptr || describe == nullptr) {
    return Bad(file, " is not a plugin: it does not use NNI_COMPRESSION_PLUGIN");
  }
  if (std::strncmp(stamp, kStamp, sizeof kStamp) != 0) {
    return Bad(file, " was built for [", std::string(stamp, strnlen(stamp, kMaxStampBytes)),
               "]; this server is [", kStamp, "]: build it with this server's headers");
  }
  std::vector<AlgorithmInfo> algorithms;
  try {
    describe(&algorithms);
  } catch (const std::exception& e) {
    return Bad(file, " failed: ", e.what());
  } catch (...) {
    return Bad(file, " failed with an unknown exception");
  }
  if (algorithms.empty()) return Bad(file, " has no algorithms");
  return algorithms;
}

}  // namespace

absl::Status LoadPlugins(const std::string& folder, Registry* registry) {
  const auto files = FilesWith(folder, ".so");
  if (!files.ok()) return files.status();
  for (const std::string& file : *files) {
    auto algorithms = LoadPlugin(file);
    if (!algorithms.ok()) return algorithms.status();
    for (AlgorithmInfo& info : *algorithms) {
      if (auto status = AddFrom(file, std::move(info), registry); !status.ok()) return status;
    }
  }
  return absl::OkStatus();
}

}  // namespace nni_compression::compression
