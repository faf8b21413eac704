// The connection that most commands need.
#ifndef NNI_COMPRESSION_CLIENT_CLI_COMMANDS_CONNECTION_H_
#define NNI_COMPRESSION_CLIENT_CLI_COMMANDS_CONNECTION_H_

#include <CLI/CLI.hpp>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/cli/command_line/command.h"
#include "nni_compression/client.h"

namespace nni_compression::cli {

// The flags that say where the server is and how it is talked to.
class ConnectionFlags {
 public:
  explicit ConnectionFlags(CLI::App& app);

  // Whether --server is there, and not empty.
  bool has_server() const { return !server_.empty(); }

  absl::StatusOr<Client> Connect() const;

 private:
  std::string server_;
  absl::Duration connect_timeout_ = absl::Seconds(5);
  std::optional<std::string> shm_socket_;
  std::optional<std::string> token_file_;
  bool allow_insecure_token_ = false;
  bool tls_ = false;
  TlsOptions tls_files_;
};

// A command that calls a server.
class ServerCommand : public Command {
 public:
  explicit ServerCommand(CLI::App& app) : connection_(app) {}

  int Run(const Output& out) final;

 protected:
  virtual int RunWith(const Client& client, const Output& out) = 0;

 private:
  ConnectionFlags connection_;
};

}  // namespace nni_compression::cli

#endif  // NNI_COMPRESSION_CLIENT_CLI_COMMANDS_CONNECTION_H_
