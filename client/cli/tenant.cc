#include "client/cli/tenant.h"

#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/cli/format.h"

namespace nni_compression::cli {
namespace {

constexpr size_t kIdDigits = 12;

}  // namespace

std::vector<TenantRow> TenantRows(const access::Tenants& tenants,
                                  const std::optional<v1::ListTenantsResponse>& use) {
  std::map<std::string, TenantRow> rows;
  for (const auto& [name, tenant] : tenants.named) rows[name].tenant = tenant;
  for (const access::Token& token : tenants.tokens) {
    rows[token.tenant].token_ids.push_back(
        absl::BytesToHexString(token.digest).substr(0, kIdDigits));
  }
  if (use) {
    for (auto& [name, row] : rows) row.use.emplace();
    for (const v1::TenantUse& tenant : use->tenants()) rows[tenant.tenant()].use = tenant;
  }
  std::vector<TenantRow> sorted;
  for (auto& [name, row] : rows) {
    row.name = name;
    sorted.push_back(std::move(row));
  }
  return sorted;
}

std::string ToText(const std::vector<TenantRow>& rows) {
  if (rows.empty()) return "there are no tenants\n";
  const bool used = rows[0].use.has_value();
  std::vector<std::string> headings = {"TENANT", "ROLE", "TOKENS", "LIMITS"};
  if (used) headings.insert(headings.end(), {"SESSIONS", "MEMORY", "DISK", "CALLS", "UPLOADS/S"});
  Table table(headings);
  for (const TenantRow& row : rows) {
    const std::string limits = access::ToText(row.tenant.quota);
    std::vector<std::string> cells = {
        Printable(row.name), row.tenant.admin ? "admin" : "-",
        row.token_ids.empty() ? "-" : absl::StrJoin(row.token_ids, ","),
        limits.empty() ? "-" : limits};
    if (used) {
      cells.push_back(absl::StrCat(row.use->sessions()));
      cells.push_back(FormatBytes(static_cast<int64_t>(row.use->memory_bytes())));
      cells.push_back(FormatBytes(static_cast<int64_t>(row.use->disk_bytes())));
      cells.push_back(absl::StrCat(row.use->calls()));
      cells.push_back(absl::StrCat(row.use->uploads()));
    }
    table.Add(std::move(cells));
  }
  return table.ToString();
}

nlohmann::json ToJson(const std::vector<TenantRow>& rows) {
  nlohmann::json tenants = nlohmann::json::array();
  for (const TenantRow& row : rows) {
    nlohmann::json limits = nlohmann::json::object();
    for (const access::Limit& limit : access::kLimits) {
      const std::optional<int64_t>& value = row.tenant.quota.*limit.value;
      if (value) limits[std::string(limit.name)] = *value;
    }
    nlohmann::json one = {{"tenant", row.name},
                          {"admin", row.tenant.admin},
                          {"token_ids", row.token_ids},
                          {"limits", limits}};
    if (row.use) {
      one["use"] = {{"sessions", row.use->sessions()},
                    {"memory_bytes", row.use->memory_bytes()},
                    {"disk_bytes", row.use->disk_bytes()},
                    {"calls", row.use->calls()},
                    {"uploads", row.use->uploads()}};
    }
    tenants.push_back(std::move(one));
  }
  return {{"tenants", tenants}};
}

}  // namespace nni_compression::cli
