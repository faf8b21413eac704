// The file of tenants, on the host of the server.
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/cli/command_line/flags.h"
#include "client/cli/commands/commands.h"
#include "client/cli/commands/connection.h"
#include "client/cli/tenant.h"
#include "server/access/tenant_editor.h"

namespace nni_compression::cli {
namespace {

// A command on the file.
class TenantFileCommand : public Command {
 public:
  explicit TenantFileCommand(CLI::App& app) {
    AddText(app, "--tokens", "FILE", &path_,
            "the server's --token_file. A server notices changes within a second")
        ->required();
  }

  int Run(const Output& out) final { return RunWith(access::TenantEditor(path_), out); }

 protected:
  virtual int RunWith(const access::TenantEditor& editor, const Output& out) = 0;

 private:
  std::string path_;
};

// A command on one tenant of the file.
class NamedTenantCommand : public TenantFileCommand {
 public:
  explicit NamedTenantCommand(CLI::App& app) : TenantFileCommand(app) {
    AddText(app, "NAME", "NAME", &name_, "name of the tenant")->required();
  }

 protected:
  const std::string& name() const { return name_; }

 private:
  std::string name_;
};

class AddTenantCommand : public NamedTenantCommand {
 public:
  explicit AddTenantCommand(CLI::App& app) : NamedTenantCommand(app) {
    AddSwitch(app, "--admin", &admin_, "makes the tenant an operator");
  }

  int RunWith(const access::TenantEditor& editor, const Output& out) override {
    const absl::StatusOr<std::string> token = editor.Add(name(), admin_);
    if (!token.ok()) return out.Fail(token.status());
    const nlohmann::json json = {{"tenant", name()}, {"token", *token}};
    return out.Print(*token + "\n", json.dump());
  }

 private:
  bool admin_ = false;
};

class ListTenantsCommand : public TenantFileCommand {
 public:
  explicit ListTenantsCommand(CLI::App& app) : TenantFileCommand(app), connection_(app) {
    app.get_option("--server")
        ->description("also shows what the tenants use of this server; for operators");
  }

  int RunWith(const access::TenantEditor& editor, const Output& out) override {
    const absl::StatusOr<access::Tenants> tenants = editor.Read();
    if (!tenants.ok()) return out.Fail(tenants.status());
    std::optional<v1::ListTenantsResponse> use;
    if (connection_.has_server()) {
      const auto client = connection_.Connect();
      if (!client.ok()) return out.Fail(client.status());
      auto response = client->ListTenants();
      if (!response.ok()) return out.Fail(response.status());
      use = *std::move(response);
    }
    const std::vector<TenantRow> rows = TenantRows(*tenants, use);
    return out.Print(ToText(rows), ToJson(rows).dump());
  }

 private:
  ConnectionFlags connection_;
};

class RevokeTokensCommand : public NamedTenantCommand {
 public:
  explicit RevokeTokensCommand(CLI::App& app) : NamedTenantCommand(app) {
    AddText(app, "--token_id", "ID", &token_id_,
            "revokes only this token; `compressionctl tenant list` shows the ids");
  }

  int RunWith(const access::TenantEditor& editor, const Output& out) override {
    const absl::StatusOr<int> revoked = editor.Revoke(name(), token_id_);
    if (!revoked.ok()) return out.Fail(revoked.status());
    const nlohmann::json json = {{"tenant", name()}, {"revoked", *revoked}};
    const std::string text =
        *revoked == 0 ? absl::StrCat(name(), " had no token; its limits and its role are gone\n")
                      : absl::StrCat("revoked ", *revoked, *revoked == 1 ? " token" : " tokens",
                                     " of ", name(), "\n");
    return out.Print(text, json.dump());
  }

 private:
  std::string token_id_;
};

class SetQuotaCommand : public NamedTenantCommand {
 public:
  explicit SetQuotaCommand(CLI::App& app) : NamedTenantCommand(app) {
    app.add_option("LIMIT", limits_,
                   "sessions=N, memory=BYTES, disk=BYTES, calls=N or uploads=N (tensors per "
                   "second); with none for the number the limit is removed")
        ->required();
    AddSwitch(app, "--without_token", &without_token_,
              "NAME is that of a client certificate, which has no token");
  }

  int RunWith(const access::TenantEditor& editor, const Output& out) override {
    const absl::StatusOr<access::Quota> quota = editor.SetQuota(name(), limits_, without_token_);
    if (!quota.ok()) return out.Fail(quota.status());
    const std::string text = access::ToText(*quota);
    const nlohmann::json json = {{"tenant", name()}, {"limits", text}};
    return out.Print(absl::StrCat(name(), ": ", text.empty() ? "no limits" : text, "\n"),
                     json.dump());
  }

 private:
  std::vector<std::string> limits_;
  bool without_token_ = false;
};

}  // namespace

void AddTenantCommands(CommandLine& line) {
  constexpr char kHeading[] = "Tenants, on the server's host";
  line.AddFamily(kHeading, "tenant", "adds and lists tenants, revokes tokens, sets limits");
  constexpr char kCommands[] = "Commands";
  line.Add<AddTenantCommand>(
      kCommands, "tenant add",
      "creates a token of a tenant and prints it; the file only gets its SHA-256");
  line.Add<ListTenantsCommand>(kCommands, "tenant list",
                               "lists tenants, the ids of their tokens, and their limits");
  line.Add<RevokeTokensCommand>(kCommands, "tenant revoke",
                                "revokes the tokens of a tenant, or one of them");
  line.Add<SetQuotaCommand>(kCommands, "tenant quota", "sets the limits of a tenant");
}

}  // namespace nni_compression::cli
