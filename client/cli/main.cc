// compressionctl. Only reads the command line; see usage.h.
#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "client/cli/backup.h"
#include "client/cli/compress.h"
#include "client/cli/export.h"
#include "client/cli/report.h"
#include "client/cli/safetensors.h"
#include "client/cli/tenant.h"
#include "client/cli/top.h"
#include "client/cli/usage.h"
#include "nni_compression/client.h"
#include "server/access/tenant_editor.h"

ABSL_FLAG(std::string, server, "", "address of the server");
ABSL_FLAG(absl::Duration, connect_timeout, absl::Seconds(5), "how long to wait for the server");
ABSL_FLAG(std::optional<std::string>, shm_socket, std::nullopt, "side socket of the server");
ABSL_FLAG(std::optional<std::string>, token_file, std::nullopt, "file with the server's token");
ABSL_FLAG(bool, tls, false, "encrypt the connection");
ABSL_FLAG(bool, allow_insecure_token, false, "send the token without TLS beyond this host, too");
ABSL_FLAG(std::string, tls_ca, "", "who signs the server's certificate");
ABSL_FLAG(std::string, tls_certificate, "", "certificate of the client");
ABSL_FLAG(std::string, tls_key, "", "key of the certificate");
ABSL_FLAG(std::string, tokens, "", "the server's file of tenants, for tenant");
ABSL_FLAG(bool, admin, false, "whether the tenant that is added is an operator");
ABSL_FLAG(std::string, token_id, "", "which token to revoke");
ABSL_FLAG(bool, without_token, false, "quota: whether the tenant is the name of a certificate");
ABSL_FLAG(bool, once, false, "top: look once");
ABSL_FLAG(absl::Duration, interval, absl::Seconds(2), "top: time between two looks");
ABSL_FLAG(std::string, data_dir, "", "data directory of the server, for backup and restore");
ABSL_FLAG(bool, json, false, "print JSON");
ABSL_FLAG(std::vector<std::string>, label, {}, "labels, as key=value");
ABSL_FLAG(std::string, algorithm, "", "algorithm of prune and quantize");
ABSL_FLAG(std::string, config, "", "file with the config_list");
ABSL_FLAG(std::string, session, "", "session of export");
ABSL_FLAG(std::string, o, "", "output directory");
ABSL_FLAG(std::string, format, "safetensors", "format of the result");
ABSL_FLAG(bool, overwrite, false, "whether files of the output directory may be replaced");
ABSL_FLAG(std::optional<int64_t>, epoch, std::nullopt, "epoch of a gradual pruner");
ABSL_FLAG(std::optional<int64_t>, step, std::nullopt, "step of a quantizer");

namespace nni_compression::cli {
namespace {

enum ExitStatus { kOk = 0, kFailed = 1, kBadUsage = 2 };

bool Json() { return absl::GetFlag(FLAGS_json); }

std::string ErrorLine(const absl::Status& status) {
  return Json() ? ErrorJson(status) : ErrorText(status);
}

void PrintError(const absl::Status& status) {
  std::fprintf(stderr, "%s\n", ErrorLine(status).c_str());
}

int Fail(const absl::Status& status) {
  PrintError(status);
  return kFailed;
}

int BadUsage(const std::string& why) {
  PrintError(absl::InvalidArgumentError(why));
  if (!Json()) std::fputs("`compressionctl --help` shows how it is used\n", stderr);
  return kBadUsage;
}

// Prints the text, or the JSON on a line.
int Print(const std::string& text, const std::string& json) {
  std::fputs(Json() ? absl::StrCat(json, "\n").c_str() : text.c_str(), stdout);
  return std::fflush(stdout) == 0 ? kOk : kFailed;
}

absl::StatusOr<std::map<std::string, std::string>> Labels() {
  std::map<std::string, std::string> labels;
  for (const std::string& label : absl::GetFlag(FLAGS_label)) {
    const std::vector<std::string> parts = absl::StrSplit(label, absl::MaxSplits('=', 1));
    if (parts.size() != 2 || parts[0].empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("--label is ", label, "; it must be KEY=VALUE"));
    }
    labels[parts[0]] = parts[1];
  }
  return labels;
}

int Health(const Client& client) {
  if (absl::Status status = client.Health(); !status.ok()) return Fail(status);
  const nlohmann::json json = {{"server", client.address()}, {"status", "serving"}};
  return Print(absl::StrCat(client.address(), " is serving\n"), json.dump());
}

int Algorithms(const Client& client) {
  const auto response = client.ListAlgorithms();
  if (!response.ok()) return Fail(response.status());
  return Print(AlgorithmsText(*response), ToJson(*response));
}

int Sessions(const Client& client, const std::map<std::string, std::string>& labels) {
  const auto sessions = client.ListSessions(labels);
  if (!sessions.ok()) return Fail(sessions.status());
  v1::ListSessionsResponse response;
  for (const v1::Session& session : *sessions) *response.add_sessions() = session;
  return Print(SessionsText(*sessions), ToJson(response));
}

// Until it is killed, or cannot write any more.
int RunTop(const Client& client, const std::map<std::string, std::string>& labels) {
  constexpr char kClear[] = "\033[H\033[J";
  const bool once = absl::GetFlag(FLAGS_once);
  winsize window = {};
  const bool terminal =
      !Json() && isatty(STDOUT_FILENO) != 0 && ioctl(STDOUT_FILENO, TIOCGWINSZ, &window) == 0;
  std::optional<Top> last;
  while (true) {
    auto top = Top::Look(client, labels, last ? &*last : nullptr);
    if (!top.ok()) return Fail(top.status());
    constexpr size_t kLinesAbove = 4;  // and the prompt's
    const size_t rows = terminal && !once && window.ws_row > kLinesAbove
                            ? window.ws_row - kLinesAbove
                            : top->rows().size();
    const int exit_status =
        Print(absl::StrCat(terminal && !once ? kClear : "", top->ToText(client.address(), rows)),
              top->ToJson(client.address()).dump());
    if (once || exit_status != kOk) return exit_status;
    last = *std::move(top);
    absl::SleepFor(absl::GetFlag(FLAGS_interval));
    ioctl(STDOUT_FILENO, TIOCGWINSZ, &window);
  }
}

int OneSession(const Client& client, const std::string& id) {
  const auto response = client.GetSession(id);
  if (!response.ok()) return Fail(response.status());
  return Print(SessionText(*response), ToJson(*response));
}

int Close(const Client& client, const std::string& id) {
  if (absl::Status status = client.CloseSession(id); !status.ok()) return Fail(status);
  const nlohmann::json json = {{"session_id", id}, {"status", "closed"}};
  return Print(absl::StrCat("closed ", id, "\n"), json.dump());
}

int CloseLabelled(const Client& client, const std::map<std::string, std::string>& labels) {
  const auto sessions = client.ListSessions(labels);
  if (!sessions.ok()) return Fail(sessions.status());
  std::string text;
  nlohmann::json ids = nlohmann::json::array();
  for (const v1::Session& session : *sessions) {
    if (absl::Status status = client.CloseSession(session.id()); !status.ok()) return Fail(status);
    absl::StrAppend(&text, "closed ", session.id(), "\n");
    ids.push_back(session.id());
  }
  if (ids.empty()) text = "no live session has these labels\n";
  return Print(text, nlohmann::json({{"closed", ids}}).dump());
}

int RunCompress(const Client& client, const CompressJob& job) {
  ExitWhenInputShrinks(ErrorLine(absl::DataLossError(
                           absl::StrCat(job.input_path, " became shorter while it was read"))),
                       kFailed);
  const auto result = Compress(client, job);
  if (!result.ok()) return Fail(result.status());
  int exit_status = Print(ToText(*result), ToJson(*result).dump());
  for (const LayerOutcome& layer : result->layers) {
    if (layer.status.ok()) continue;
    exit_status = Fail(layer.status);
  }
  if (exit_status != kOk && !Json()) std::fputs("nothing was written\n", stderr);
  return exit_status;
}

int RunExport(const Client& client, const ExportJob& job) {
  const auto result = Export(client, job);
  if (!result.ok()) return Fail(result.status());
  return Print(ToText(*result), ToJson(*result).dump());
}

// On a directory of this machine; no server is asked.
int CopyData(const std::string& command, const std::string& directory) {
  const std::string data_dir = absl::GetFlag(FLAGS_data_dir);
  if (data_dir.empty()) return BadUsage(absl::StrCat(command, " needs --data_dir"));
  const auto copied =
      command == "backup" ? Backup(data_dir, directory) : Restore(directory, data_dir);
  if (!copied.ok()) return Fail(copied.status());
  const nlohmann::json json = {{"data_dir", data_dir},
                               {command, directory},
                               {"files", copied->files},
                               {"bytes", copied->bytes}};
  return Print(absl::StrCat(command == "backup" ? "backed up " : "restored ", data_dir,
                            command == "backup" ? " to " : " from ", directory, ": ", copied->files,
                            " files, ", copied->bytes, " bytes\n"),
               json.dump());
}

ClientOptions OptionsFromFlags() {
  ClientOptions options;
  options.connect_timeout = absl::GetFlag(FLAGS_connect_timeout);
  options.shm_socket = absl::GetFlag(FLAGS_shm_socket);
  options.token_file = absl::GetFlag(FLAGS_token_file);
  if (absl::GetFlag(FLAGS_allow_insecure_token)) options.allow_insecure_token = true;
  const TlsOptions tls = {absl::GetFlag(FLAGS_tls_ca), absl::GetFlag(FLAGS_tls_certificate),
                          absl::GetFlag(FLAGS_tls_key)};
  if (absl::GetFlag(FLAGS_tls) || !tls.ca.empty() || !tls.certificate.empty() || !tls.key.empty()) {
    options.tls = tls;
  }
  return options;
}

int ListTenants(const access::TenantEditor& editor) {
  const absl::StatusOr<access::Tenants> tenants = editor.Read();
  if (!tenants.ok()) return Fail(tenants.status());
  std::optional<v1::ListTenantsResponse> use;
  if (const std::string server = absl::GetFlag(FLAGS_server); !server.empty()) {
    const auto client = Client::Connect(server, OptionsFromFlags());
    if (!client.ok()) return Fail(client.status());
    auto response = client->ListTenants();
    if (!response.ok()) return Fail(response.status());
    use = *std::move(response);
  }
  const std::vector<TenantRow> rows = TenantRows(*tenants, use);
  return Print(ToText(rows), ToJson(rows).dump());
}

int AddTenant(const access::TenantEditor& editor, const std::string& name) {
  const absl::StatusOr<std::string> token = editor.Add(name, absl::GetFlag(FLAGS_admin));
  if (!token.ok()) return Fail(token.status());
  const nlohmann::json json = {{"tenant", name}, {"token", *token}};
  return Print(*token + "\n", json.dump());
}

int RevokeTokens(const access::TenantEditor& editor, const std::string& name) {
  const absl::StatusOr<int> revoked = editor.Revoke(name, absl::GetFlag(FLAGS_token_id));
  if (!revoked.ok()) return Fail(revoked.status());
  const nlohmann::json json = {{"tenant", name}, {"revoked", *revoked}};
  const std::string text =
      *revoked == 0 ? absl::StrCat(name, " had no token; its limits and its role are gone\n")
                    : absl::StrCat("revoked ", *revoked, *revoked == 1 ? " token" : " tokens",
                                   " of ", name, "\n");
  return Print(text, json.dump());
}

int SetQuota(const access::TenantEditor& editor, const std::string& name,
             const std::vector<std::string>& limits) {
  const absl::StatusOr<access::Quota> quota =
      editor.SetQuota(name, limits, absl::GetFlag(FLAGS_without_token));
  if (!quota.ok()) return Fail(quota.status());
  const std::string text = access::ToText(*quota);
  const nlohmann::json json = {{"tenant", name}, {"limits", text}};
  return Print(absl::StrCat(name, ": ", text.empty() ? "no limits" : text, "\n"), json.dump());
}

// On a file of this machine.
int Tenant(const std::vector<std::string>& arguments) {
  const std::string path = absl::GetFlag(FLAGS_tokens);
  if (path.empty()) return BadUsage("tenant needs --tokens, the server's --token_file");
  const access::TenantEditor editor(path);
  const std::string what = arguments.size() > 1 ? arguments[1] : "";
  if (what == "list" && arguments.size() == 2) return ListTenants(editor);
  if (what == "add" && arguments.size() == 3) return AddTenant(editor, arguments[2]);
  if (what == "revoke" && arguments.size() == 3) return RevokeTokens(editor, arguments[2]);
  if (what == "quota" && arguments.size() >= 4) {
    return SetQuota(editor, arguments[2], {arguments.begin() + 3, arguments.end()});
  }
  return BadUsage("tenant takes add NAME, list, revoke NAME, or quota NAME LIMIT...");
}

// What a command is called with, beside flags.
struct Command {
  const char* name;
  size_t arguments;
  const char* argument;  // what it is, for messages
};

constexpr Command kCommands[] = {
    {"health", 0, ""},
    {"algorithms", 0, ""},
    {"sessions", 0, ""},
    {"top", 0, ""},
    {"session", 1, "a session's id"},
    {"close", 1, "a session's id, or --label"},
    {"prune", 1, "a .safetensors file"},
    {"quantize", 1, "a .safetensors file"},
    {"export", 1, "a .safetensors file"},
    {"backup", 1, "a new directory"},
    {"restore", 1, "a backup's directory"},
};

const Command* FindCommand(const std::string& name) {
  for (const Command& command : kCommands) {
    if (name == command.name) return &command;
  }
  return nullptr;
}

absl::StatusOr<CompressJob> JobFromFlags(const std::string& command, const std::string& input,
                                         std::map<std::string, std::string> labels) {
  const std::pair<const char*, std::string> required[] = {
      {"--algorithm", absl::GetFlag(FLAGS_algorithm)},
      {"--config", absl::GetFlag(FLAGS_config)},
      {"-o", absl::GetFlag(FLAGS_o)}};
  for (const auto& [flag, value] : required) {
    if (value.empty()) return absl::InvalidArgumentError(absl::StrCat(command, " needs ", flag));
  }
  CompressJob job;
  job.kind = command == "prune" ? v1::ALGORITHM_KIND_PRUNER : v1::ALGORITHM_KIND_QUANTIZER;
  job.algorithm = absl::GetFlag(FLAGS_algorithm);
  job.config_path = absl::GetFlag(FLAGS_config);
  job.input_path = input;
  job.output_directory = absl::GetFlag(FLAGS_o);
  job.format = absl::GetFlag(FLAGS_format);
  job.overwrite = absl::GetFlag(FLAGS_overwrite);
  job.epoch = absl::GetFlag(FLAGS_epoch);
  job.step = absl::GetFlag(FLAGS_step);
  job.labels = std::move(labels);
  job.progress = Json() ? nullptr : stderr;
  return job;
}

absl::StatusOr<ExportJob> ExportFromFlags(const std::string& input) {
  ExportJob job;
  job.session_id = absl::GetFlag(FLAGS_session);
  job.input_path = input;
  job.output_directory = absl::GetFlag(FLAGS_o);
  job.format = absl::GetFlag(FLAGS_format);
  job.overwrite = absl::GetFlag(FLAGS_overwrite);
  job.progress = Json() ? nullptr : stderr;
  if (job.session_id.empty()) return absl::InvalidArgumentError("export needs --session");
  if (job.output_directory.empty()) return absl::InvalidArgumentError("export needs -o");
  return job;
}

int Run(const std::vector<std::string>& arguments) {
  if (arguments.empty()) return BadUsage("there is no command");
  const std::string& name = arguments[0];
  if (name == "help") return Print(kUsage, nlohmann::json({{"help", kUsage}}).dump());
  if (name == "tenant") return Tenant(arguments);
  const Command* command = FindCommand(name);
  if (command == nullptr) return BadUsage(absl::StrCat("there is no command ", name));
  const bool close_labelled =
      name == "close" && arguments.size() == 1 && !absl::GetFlag(FLAGS_label).empty();
  const bool export_masks =
      name == "export" && arguments.size() == 1 && absl::GetFlag(FLAGS_format) == "masks";
  if (arguments.size() != command->arguments + 1 && !close_labelled && !export_masks) {
    return BadUsage(absl::StrCat(name, " takes ",
                                 command->arguments == 0 ? "no argument" : "one argument, ",
                                 command->argument));
  }
  const std::string argument = arguments.size() == 1 ? "" : arguments[1];
  if (name == "backup" || name == "restore") return CopyData(name, argument);
  const auto labels = Labels();
  if (!labels.ok()) return BadUsage(std::string(labels.status().message()));
  std::optional<CompressJob> job;
  if (name == "prune" || name == "quantize") {
    auto from_flags = JobFromFlags(name, argument, *labels);
    if (!from_flags.ok()) return BadUsage(std::string(from_flags.status().message()));
    job = *std::move(from_flags);
  }
  std::optional<ExportJob> export_job;
  if (name == "export") {
    auto from_flags = ExportFromFlags(argument);
    if (!from_flags.ok()) return BadUsage(std::string(from_flags.status().message()));
    export_job = *std::move(from_flags);
  }
  if (name == "top" && absl::GetFlag(FLAGS_interval) < absl::Milliseconds(100)) {
    return BadUsage(absl::StrCat("--interval is ",
                                 absl::FormatDuration(absl::GetFlag(FLAGS_interval)),
                                 "; it must be at least 100ms"));
  }
  const auto client = Client::Connect(absl::GetFlag(FLAGS_server), OptionsFromFlags());
  if (!client.ok()) return Fail(client.status());
  if (job) return RunCompress(*client, *job);
  if (export_job) return RunExport(*client, *export_job);
  if (name == "health") return Health(*client);
  if (name == "algorithms") return Algorithms(*client);
  if (name == "sessions") return Sessions(*client, *labels);
  if (name == "top") return RunTop(*client, *labels);
  if (name == "session") return OneSession(*client, argument);
  return close_labelled ? CloseLabelled(*client, *labels) : Close(*client, argument);
}

// Help is no error, and it comes before all else that the line may say.
bool Wants(int argc, char** argv, std::initializer_list<const char*> words) {
  for (int i = 1; i < argc; ++i) {
    for (const char* word : words) {
      if (std::strcmp(argv[i], word) == 0) return true;
    }
  }
  return false;
}

}  // namespace

int Main(int argc, char** argv) {
  if (Wants(argc, argv, {"--help", "-help", "-h"})) {
    std::fputs(kUsage, stdout);
    return kOk;
  }
  if (Wants(argc, argv, {"--version"})) {
    std::fputs("compressionctl " NNI_COMPRESSION_VERSION "\n", stdout);
    return kOk;
  }
  absl::SetProgramUsageMessage(kUsage);
  const std::vector<char*> rest = absl::ParseCommandLine(argc, argv);
  return Run({rest.begin() + 1, rest.end()});
}

}  // namespace nni_compression::cli

int main(int argc, char** argv) { return nni_compression::cli::Main(argc, argv); }
