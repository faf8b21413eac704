// Algorithms that are not built in: plugins and scripts that an operator put into a folder.
#ifndef NNI_COMPRESSION_COMPRESSION_EXTENSIONS_LOADER_H_
#define NNI_COMPRESSION_COMPRESSION_EXTENSIONS_LOADER_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "compression/algorithms/registry.h"

namespace nni_compression::compression {

// Adds the algorithms of all files *.so in `folder`, in alphabetical order. They stay loaded for
// good. INVALID_ARGUMENT, naming the file, unless it is a plugin with the stamp of this program
// (see plugin.h); ALREADY_EXISTS for an algorithm whose name is in use.
absl::Status LoadPlugins(const std::string& folder, Registry* registry);

// The same for TorchScript modules, *.pt: each is one algorithm of the file's name.
absl::Status LoadScripts(const std::string& folder, Registry* registry);

// The regular files in `folder` that end in `extension`, in alphabetical order. NOT_FOUND when it
// is not a folder.
absl::StatusOr<std::vector<std::string>> FilesWith(const std::string& folder,
                                                   absl::string_view extension);

// Checks an entry, sets its source to `file`, and adds it. Messages begin with the file's name.
absl::Status AddFrom(const std::string& file, AlgorithmInfo info, Registry* registry);

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_EXTENSIONS_LOADER_H_
