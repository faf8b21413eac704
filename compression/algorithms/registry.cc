#include "compression/algorithms/registry.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "compression/algorithms/presets.h"
#include "compression/messages/suggest.h"

namespace nni_compression::compression {

// One line for each algorithm of algorithms/ that is not a preset: the function that describes it.
#define NNI_COMPRESSION_ALGORITHMS(ALGORITHM) \
  ALGORITHM(CustomPruner)                     \
  ALGORITHM(CustomQuantizer)                  \
  ALGORITHM(Dorefa)                           \
  ALGORITHM(NM)                               \
  ALGORITHM(Naive)                            \
  ALGORITHM(Qat)

#define NNI_COMPRESSION_DECLARE(name) AlgorithmInfo name##Algorithm();
NNI_COMPRESSION_ALGORITHMS(NNI_COMPRESSION_DECLARE)
#undef NNI_COMPRESSION_DECLARE

const Registry& Registry::Builtin() {
  static const Registry* const registry = [] {
    auto* filled = new Registry;
#define NNI_COMPRESSION_ADD(name) filled->Add(name##Algorithm()).IgnoreError();
    NNI_COMPRESSION_ALGORITHMS(NNI_COMPRESSION_ADD)
#undef NNI_COMPRESSION_ADD
    for (const AlgorithmInfo& info : PrunerPresets()) filled->Add(info).IgnoreError();
    return filled;
  }();
  return *registry;
}

absl::Status Registry::Add(const AlgorithmInfo& info) {
  const auto [it, added] = algorithms_.try_emplace(info.name, info);
  if (added) return absl::OkStatus();
  const std::string& source = it->second.source;
  return absl::AlreadyExistsError(
      absl::StrCat("the algorithm ", Quoted(info.name), " exists already, ",
                   source.empty() ? "built in" : absl::StrCat("in ", source)));
}

absl::StatusOr<const AlgorithmInfo*> Registry::Find(absl::string_view name) const {
  const auto found = algorithms_.find(std::string(name));
  if (found != algorithms_.end()) return &found->second;
  std::vector<std::string> names;
  names.reserve(algorithms_.size());
  for (const auto& entry : algorithms_) names.push_back(entry.first);
  return absl::InvalidArgumentError(absl::StrCat("algorithm is ", Quoted(name),
                                                 "; it must be one of ", absl::StrJoin(names, ", "),
                                                 Suggestion(name, names)));
}

std::vector<const AlgorithmInfo*> Registry::List() const {
  std::vector<const AlgorithmInfo*> list;
  list.reserve(algorithms_.size());
  for (const auto& entry : algorithms_) list.push_back(&entry.second);
  return list;
}

}  // namespace nni_compression::compression
