// Copies of data directories, on the host of the server.
#include <nlohmann/json.hpp>
#include <string>

#include "absl/strings/str_cat.h"
#include "client/cli/backup.h"
#include "client/cli/command_line/flags.h"
#include "client/cli/commands/commands.h"

namespace nni_compression::cli {
namespace {

int PrintCopy(const Output& out, const CopiedData& copied, const std::string& done,
              nlohmann::json paths) {
  paths["files"] = copied.files;
  paths["bytes"] = copied.bytes;
  return out.Print(absl::StrCat(done, ": ", copied.files, " files, ", copied.bytes, " bytes\n"),
                   paths.dump());
}

class BackupCommand : public Command {
 public:
  explicit BackupCommand(CLI::App& app) {
    AddText(app, "NEW_DIR", "DIR", &backup_, "where the backup goes: a new directory")->required();
    AddText(app, "--data_dir", "DIR", &data_dir_, "the server's --data_dir")->required();
  }

  int Run(const Output& out) override {
    const auto copied = Backup(data_dir_, backup_);
    if (!copied.ok()) return out.Fail(copied.status());
    return PrintCopy(out, *copied, absl::StrCat("backed up ", data_dir_, " to ", backup_),
                     {{"data_dir", data_dir_}, {"backup", backup_}});
  }

 private:
  std::string backup_;
  std::string data_dir_;
};

class RestoreCommand : public Command {
 public:
  explicit RestoreCommand(CLI::App& app) {
    AddText(app, "BACKUP_DIR", "DIR", &backup_, "directory of the backup")->required();
    AddText(app, "--data_dir", "DIR", &data_dir_,
            "the new data directory, for a server to start on")
        ->required();
  }

  int Run(const Output& out) override {
    const auto copied = Restore(backup_, data_dir_);
    if (!copied.ok()) return out.Fail(copied.status());
    return PrintCopy(out, *copied, absl::StrCat("restored ", data_dir_, " from ", backup_),
                     {{"data_dir", data_dir_}, {"restore", backup_}});
  }

 private:
  std::string backup_;
  std::string data_dir_;
};

}  // namespace

void AddDataDirectoryCommands(CommandLine& line) {
  constexpr char kHeading[] = "Data directories, on the server's host";
  line.Add<BackupCommand>(kHeading, "backup", "copies the sessions of a server while it runs");
  line.Add<RestoreCommand>(kHeading, "restore", "makes a data directory from a backup");
}

}  // namespace nni_compression::cli
