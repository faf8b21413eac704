// The sessions of a server.
#include <sys/ioctl.h>
#include <unistd.h>

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "client/cli/command_line/flags.h"
#include "client/cli/commands/commands.h"
#include "client/cli/commands/connection.h"
#include "client/cli/experiment.h"
#include "client/cli/report.h"
#include "client/cli/top.h"
#include "nni_compression/files.h"

namespace nni_compression::cli {
namespace {

using Labels = std::map<std::string, std::string>;

constexpr char kOnlyLabelled[] =
    "only sessions that have all of these labels. Those of the trials of an NNI experiment have "
    "nni_experiment, nni_trial and nni_sequence";

class SessionsCommand : public ServerCommand {
 public:
  explicit SessionsCommand(CLI::App& app) : ServerCommand(app) {
    AddSwitch(app, "--all", &all_,
              "also those that have ended, as long as the server keeps their last reports "
              "(--report_retention)");
    AddLabels(app, &labels_, kOnlyLabelled);
  }

  int RunWith(const Client& client, const Output& out) override {
    const auto sessions = all_ ? client.ListAllSessions(labels_) : client.ListSessions(labels_);
    if (!sessions.ok()) return out.Fail(sessions.status());
    v1::ListSessionsResponse response;
    for (const v1::Session& session : *sessions) *response.add_sessions() = session;
    return out.Print(SessionsText(*sessions), ToJson(response));
  }

 private:
  bool all_ = false;
  Labels labels_;
};

class ExperimentCommand : public ServerCommand {
 public:
  explicit ExperimentCommand(CLI::App& app) : ServerCommand(app) {
    AddLabels(app, &labels_, "of the experiment's sessions, such as nni_experiment=ID")->required();
    AddText(app, "--x", "NAME", &x_, "a result, or the sparsity, by which trials are compared");
    AddText(app, "--y", "NAME", &y_, "the other one");
    AddChoice(app, "--minimize", "WHICH", &minimize_,
              {{"none", ""}, {"x", ""}, {"y", ""}, {"both", ""}},
              "of which of the two a smaller number is better");
    AddText(app, "-o", "FILE", &path_, "the page, an HTML file in a directory that exists")
        ->required();
    AddSwitch(app, "--overwrite", &overwrite_, "replaces an existing file");
  }

  int RunWith(const Client& client, const Output& out) override {
    const auto sessions = client.ListAllSessions(labels_);
    if (!sessions.ok()) return out.Fail(sessions.status());
    auto experiment = Experiment::Of(*sessions, {x_, minimize_ == "x" || minimize_ == "both"},
                                     {y_, minimize_ == "y" || minimize_ == "both"});
    if (!experiment.ok()) return out.Fail(experiment.status());
    for (Trial& trial : experiment->trials()) {
      if (!trial.on_front) continue;
      const auto response = client.GetSession(trial.session.id());
      if (absl::IsNotFound(response.status())) continue;  // forgotten meanwhile
      if (!response.ok()) return out.Fail(response.status());
      *trial.session.mutable_config_list() = response->session().config_list();
    }
    if (absl::Status written = Write(experiment->ToHtml(labels_)); !written.ok()) {
      return out.Fail(written);
    }
    nlohmann::json json = experiment->ToJson();
    json["file"] = path_;
    return out.Print(absl::StrCat(experiment->ToText(), "wrote ", path_, "\n"), json.dump());
  }

 private:
  absl::Status Write(const std::string& page) const {
    const std::filesystem::path path(path_);
    const std::string folder = path.has_parent_path() ? path.parent_path().string() : ".";
    auto directory =
        DirectorySink::Create(folder, overwrite_ ? ExistingFiles::kReplace : ExistingFiles::kKeep);
    if (!directory.ok()) return directory.status();
    absl::Status status =
        directory->Begin(path.filename().string(), static_cast<int64_t>(page.size()));
    if (status.ok()) {
      status = directory->Write(
          absl::MakeConstSpan(reinterpret_cast<const uint8_t*>(page.data()), page.size()));
    }
    if (status.ok()) status = directory->End();
    if (status.ok()) status = directory->Commit().status();
    if (!absl::IsAlreadyExists(status)) return status;
    return absl::AlreadyExistsError(
        absl::StrCat(status.message(), "; choose another file, or replace it with --overwrite"));
  }

  Labels labels_;
  std::string x_ = "sparsity";
  std::string y_ = "accuracy";
  std::string minimize_ = "none";
  std::string path_;
  bool overwrite_ = false;
};

class SessionCommand : public ServerCommand {
 public:
  explicit SessionCommand(CLI::App& app) : ServerCommand(app) {
    AddText(app, "ID", "ID", &id_, "id of the session")->required();
  }

  int RunWith(const Client& client, const Output& out) override {
    const auto response = client.GetSession(id_);
    if (!response.ok()) return out.Fail(response.status());
    return out.Print(SessionText(*response), ToJson(*response));
  }

 private:
  std::string id_;
};

class TopCommand : public ServerCommand {
 public:
  explicit TopCommand(CLI::App& app) : ServerCommand(app) {
    AddSwitch(app, "--once", &once_, "prints once, with rates since the sessions began");
    AddDuration(app, "--interval", &interval_, "time between updates, at least 100ms");
    AddLabels(app, &labels_, kOnlyLabelled);
  }

  absl::Status Check() const override {
    if (interval_ >= absl::Milliseconds(100)) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(
        "--interval is ", absl::FormatDuration(interval_), "; it must be at least 100ms"));
  }

  // Until it is killed, or stdout cannot be written.
  int RunWith(const Client& client, const Output& out) override {
    constexpr char kClear[] = "\033[H\033[J";
    winsize window = {};
    const bool redraw = !once_ && !out.json() && isatty(STDOUT_FILENO) != 0 &&
                        ioctl(STDOUT_FILENO, TIOCGWINSZ, &window) == 0;
    std::optional<Top> last;
    while (true) {
      auto top = Top::Query(client, labels_, last ? &*last : nullptr);
      if (!top.ok()) return out.Fail(top.status());
      constexpr size_t kLinesAbove = 4;  // and the prompt's
      const size_t rows =
          redraw && window.ws_row > kLinesAbove ? window.ws_row - kLinesAbove : top->rows().size();
      const int exit_status =
          out.Print(absl::StrCat(redraw ? kClear : "", top->ToText(client.address(), rows)),
                    top->ToJson(client.address()).dump());
      if (once_ || exit_status != kOk) return exit_status;
      last = *std::move(top);
      absl::SleepFor(interval_);
      ioctl(STDOUT_FILENO, TIOCGWINSZ, &window);
    }
  }

 private:
  bool once_ = false;
  absl::Duration interval_ = absl::Seconds(2);
  Labels labels_;
};

class CloseCommand : public ServerCommand {
 public:
  explicit CloseCommand(CLI::App& app) : ServerCommand(app) {
    AddText(app, "ID", "ID", &id_, "id of the session");
    AddLabels(app, &labels_, "instead of ID: closes all sessions that have these labels");
  }

  absl::Status Check() const override {
    if (id_.empty() != labels_.empty()) return absl::OkStatus();
    return absl::InvalidArgumentError(
        "close takes the ID of a session or --label, and one of them");
  }

  int RunWith(const Client& client, const Output& out) override {
    return labels_.empty() ? CloseOne(client, out) : CloseLabelled(client, out);
  }

 private:
  int CloseOne(const Client& client, const Output& out) const {
    if (absl::Status status = client.CloseSession(id_); !status.ok()) return out.Fail(status);
    const nlohmann::json json = {{"session_id", id_}, {"status", "closed"}};
    return out.Print(absl::StrCat("closed ", id_, "\n"), json.dump());
  }

  int CloseLabelled(const Client& client, const Output& out) const {
    const auto sessions = client.ListSessions(labels_);
    if (!sessions.ok()) return out.Fail(sessions.status());
    std::string text;
    nlohmann::json ids = nlohmann::json::array();
    for (const v1::Session& session : *sessions) {
      if (absl::Status status = client.CloseSession(session.id()); !status.ok()) {
        return out.Fail(status);
      }
      absl::StrAppend(&text, "closed ", session.id(), "\n");
      ids.push_back(session.id());
    }
    if (ids.empty()) text = "no live session has these labels\n";
    return out.Print(text, nlohmann::json({{"closed", ids}}).dump());
  }

  std::string id_;
  Labels labels_;
};

}  // namespace

void AddSessionCommands(CommandLine& line) {
  constexpr char kHeading[] = "Sessions";
  line.Add<SessionsCommand>(kHeading, "sessions", "lists the live sessions, or all of them");
  line.Add<SessionCommand>(kHeading, "session", "shows one session, layer by layer");
  line.Add<ExperimentCommand>(kHeading, "experiment",
                              "compares the sessions of an experiment by what they reported, in an "
                              "HTML page with the Pareto front");
  line.Add<TopCommand>(kHeading, "top",
                       "shows the busiest sessions, their throughput and their memory until it is "
                       "interrupted");
  line.Add<CloseCommand>(kHeading, "close", "ends a session, or all that have certain labels");
}

}  // namespace nni_compression::cli
