#include "client/cli/commands/connection.h"

#include "client/cli/command_line/flags.h"

namespace nni_compression::cli {
namespace {

constexpr char kConnection[] = "Connection";

}  // namespace

ConnectionFlags::ConnectionFlags(CLI::App& app) {
  CLI::Option* const flags[] = {
      AddText(app, "--server", "HOST:PORT", &server_,
              "address of the server (default: $NNI_COMPRESSION_SERVER, else 127.0.0.1:50051)"),
      AddDuration(app, "--connect_timeout", &connect_timeout_, "how long to wait for the server"),
      AddText(app, "--shm_socket", "PATH", &shm_socket_,
              "the server's --shm_socket, where it is on this host: large tensors are handed over "
              "in shared memory (default: $NNI_COMPRESSION_SHM_SOCKET, else where a server of this "
              "user offers it)"),
      AddText(app, "--token_file", "FILE", &token_file_,
              "file with the token that the server asks for (default: "
              "$NNI_COMPRESSION_TOKEN_FILE, or the token in $NNI_COMPRESSION_TOKEN)"),
      AddSwitch(app, "--allow_insecure_token", &allow_insecure_token_,
                "sends the token without TLS to other hosts, too, for networks without "
                "eavesdroppers (default: $NNI_COMPRESSION_ALLOW_INSECURE_TOKEN=1)"),
      AddSwitch(app, "--tls", &tls_,
                "encrypts the connection; implied by the flags below (default: "
                "$NNI_COMPRESSION_TLS=1)"),
      AddText(app, "--tls_ca", "FILE", &tls_files_.ca,
              "PEM file of the authorities that may have signed the server's certificate "
              "(default: $NNI_COMPRESSION_TLS_CA, else those that gRPC trusts)"),
      AddText(app, "--tls_certificate", "FILE", &tls_files_.certificate,
              "PEM file of the client certificate, for mutual TLS (default: "
              "$NNI_COMPRESSION_TLS_CERTIFICATE)"),
      AddText(app, "--tls_key", "FILE", &tls_files_.key,
              "PEM file of the certificate's key (default: $NNI_COMPRESSION_TLS_KEY)"),
  };
  for (CLI::Option* flag : flags) flag->group(kConnection);
}

absl::StatusOr<Client> ConnectionFlags::Connect() const {
  ClientOptions options;
  options.connect_timeout = connect_timeout_;
  options.shm_socket = shm_socket_;
  options.token_file = token_file_;
  if (allow_insecure_token_) options.allow_insecure_token = true;
  if (tls_ || !tls_files_.ca.empty() || !tls_files_.certificate.empty() ||
      !tls_files_.key.empty()) {
    options.tls = tls_files_;
  }
  return Client::Connect(server_, options);
}

int ServerCommand::Run(const Output& out) {
  const auto client = connection_.Connect();
  if (!client.ok()) return out.Fail(client.status());
  return RunWith(*client, out);
}

}  // namespace nni_compression::cli
