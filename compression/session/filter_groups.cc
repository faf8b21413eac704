#include "compression/session/filter_groups.h"

#include <algorithm>
#include <memory>
#include <numeric>
#include <optional>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "compression/messages/suggest.h"

namespace nni_compression::compression {
namespace {

absl::StatusOr<InFilterGroup> ReadMember(const FilterGroup::Member& member, const Layer& layer,
                                         const std::string& path) {
  const auto invalid = [&](const auto&... parts) {
    return absl::InvalidArgumentError(absl::StrCat(path, parts...));
  };
  const int64_t filters = layer.filters();
  if (filters > kMaxFilters) {
    return invalid(".layer is ", Quoted(member.layer), ", which has ", filters,
                   " filters; it must have at most ", kMaxFilters);
  }
  InFilterGroup in;
  in.units = member.units;
  if (in.units.empty()) {
    in.units.resize(static_cast<size_t>(filters));
    std::iota(in.units.begin(), in.units.end(), 0u);
  }
  if (static_cast<int64_t>(in.units.size()) != filters) {
    return invalid(".units has ", in.units.size(), " entries; layer ", Quoted(member.layer),
                   " has ", filters, " filters");
  }
  const auto highest = std::max_element(in.units.begin(), in.units.end());
  if (*highest >= static_cast<uint32_t>(kMaxFilters)) {
    return invalid(".units[", highest - in.units.begin(), "] is ", *highest, "; it must be in [0, ",
                   kMaxFilters - 1, "]");
  }
  in.count = int64_t{*highest} + 1;
  return in;
}

// Sets the count of units and the runs of all members.
absl::Status Complete(const FilterGroup& group, absl::Span<InFilterGroup> members,
                      const std::string& path) {
  int64_t count = 0;
  std::optional<size_t> first;  // whose filters are units
  for (size_t j = 0; j < members.size(); ++j) {
    const int64_t own = members[j].count;
    count = std::max(count, own);
    if (!group.members[j].units.empty()) continue;
    if (!first) first = j;
    if (own == members[*first].count) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(path, ".members[", j, "].layer is ", Quoted(group.members[j].layer),
                     ", which has ", own, " filters; it must have ", members[*first].count,
                     ", as layer ", Quoted(group.members[*first].layer), ", or units"));
  }
  std::vector<bool> occurs(static_cast<size_t>(count), false);
  for (const InFilterGroup& member : members) {
    for (const uint32_t unit : member.units) occurs[unit] = true;
  }
  if (const auto lacking = std::find(occurs.begin(), occurs.end(), false);
      lacking != occurs.end()) {
    return absl::InvalidArgumentError(absl::StrCat(path, " has no filter of unit ",
                                                   lacking - occurs.begin(), "; all units in [0, ",
                                                   count - 1, "] must occur"));
  }
  if (group.runs < 1 || count % group.runs != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ".runs is ", group.runs, "; it must divide the number of units, ", count));
  }
  for (InFilterGroup& member : members) {
    member.count = count;
    member.runs = group.runs;
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status AssignGroups(const std::vector<FilterGroup>& groups,
                          const absl::flat_hash_map<std::string, int>& index,
                          std::vector<Layer>& layers) {
  for (size_t g = 0; g < groups.size(); ++g) {
    const std::string path = absl::StrCat("filter_groups[", g, "]");
    if (groups[g].members.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, " has no members; it must have at least one"));
    }
    std::vector<InFilterGroup> members;
    std::vector<Layer*> their_layers;
    absl::flat_hash_set<const Layer*> known;
    for (size_t j = 0; j < groups[g].members.size(); ++j) {
      const FilterGroup::Member& member = groups[g].members[j];
      const std::string member_path = absl::StrCat(path, ".members[", j, "]");
      const auto found = index.find(member.layer);
      if (found == index.end()) {
        return absl::InvalidArgumentError(absl::StrCat(
            member_path, ".layer is ", Quoted(member.layer), "; it must be the name of a layer"));
      }
      Layer& layer = layers[static_cast<size_t>(found->second)];
      const bool again = !known.insert(&layer).second;
      if (again || layer.group) {
        return absl::InvalidArgumentError(
            absl::StrCat(member_path, ".layer is ", Quoted(member.layer), ", which is in ",
                         "filter_groups[", again ? g : static_cast<size_t>(layer.group->index),
                         "] already; a layer must be in at most one group, once"));
      }
      absl::StatusOr<InFilterGroup> in = ReadMember(member, layer, member_path);
      if (!in.ok()) return in.status();
      in->index = static_cast<int>(g);
      members.push_back(*std::move(in));
      their_layers.push_back(&layer);
    }
    if (auto status = Complete(groups[g], absl::MakeSpan(members), path); !status.ok()) {
      return status;
    }
    for (size_t j = 0; j < members.size(); ++j) {
      their_layers[j]->group = std::make_shared<const InFilterGroup>(std::move(members[j]));
    }
  }
  return absl::OkStatus();
}

}  // namespace nni_compression::compression
