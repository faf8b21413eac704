// The tenants of a server, their limits, and what they use.
#ifndef NNI_COMPRESSION_CLIENT_CLI_TENANT_H_
#define NNI_COMPRESSION_CLIENT_CLI_TENANT_H_

#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "nni_compression/client.h"
#include "server/access/tenants.h"

namespace nni_compression::cli {

// A tenant of the file, and what a server reports about it.
struct TenantRow {
  std::string name;
  access::Tenant tenant;
  std::vector<std::string> token_ids;  // the first 12 digits of each token's SHA-256
  std::optional<v1::TenantUse> use;    // nullopt when no server was asked
};

// The tenants of the file, and those that only the server knows, by name. `use` is nullopt when no
// server was asked.
std::vector<TenantRow> TenantRows(const access::Tenants& tenants,
                                  const std::optional<v1::ListTenantsResponse>& use);

std::string ToText(const std::vector<TenantRow>& rows);
nlohmann::json ToJson(const std::vector<TenantRow>& rows);

}  // namespace nni_compression::cli

#endif  // NNI_COMPRESSION_CLIENT_CLI_TENANT_H_
