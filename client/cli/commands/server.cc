// What a server is and offers.
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "client/cli/commands/commands.h"
#include "client/cli/commands/connection.h"
#include "client/cli/report.h"

namespace nni_compression::cli {
namespace {

class HealthCommand : public ServerCommand {
 public:
  using ServerCommand::ServerCommand;

  int RunWith(const Client& client, const Output& out) override {
    if (absl::Status status = client.Health(); !status.ok()) return out.Fail(status);
    const nlohmann::json json = {{"server", client.address()}, {"status", "serving"}};
    return out.Print(absl::StrCat(client.address(), " is serving\n"), json.dump());
  }
};

class AlgorithmsCommand : public ServerCommand {
 public:
  using ServerCommand::ServerCommand;

  int RunWith(const Client& client, const Output& out) override {
    const auto response = client.ListAlgorithms();
    if (!response.ok()) return out.Fail(response.status());
    return out.Print(AlgorithmsText(*response), ToJson(*response));
  }
};

}  // namespace

void AddServerCommands(CommandLine& line) {
  constexpr char kHeading[] = "Server";
  line.Add<HealthCommand>(kHeading, "health", "shows whether the server takes calls");
  line.Add<AlgorithmsCommand>(kHeading, "algorithms",
                              "lists the algorithms of the server, with their options");
}

}  // namespace nni_compression::cli
