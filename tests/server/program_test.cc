// The program compression_server: its flags, its port file, its signals.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "tests/testing/latch.h"

namespace nni_compression::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// A run of the program, with what it wrote. Killed at the end of the test if it still runs.
class Program {
 public:
  Program(const std::string& folder, std::vector<std::string> arguments)
      : output_(folder + "/output") {
    arguments.insert(arguments.begin(), SERVER_PROGRAM);
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    child_ = fork();
    if (child_ != 0) return;
    const int file = open(output_.c_str(), O_CREAT | O_TRUNC | O_WRONLY, 0600);
    dup2(file, STDOUT_FILENO);
    dup2(file, STDERR_FILENO);
    execv(argv[0], argv.data());
    _exit(127);
  }
  ~Program() {
    if (child_ <= 0) return;
    kill(child_, SIGKILL);
    waitpid(child_, nullptr, 0);
  }

  void Signal(int signal) { kill(child_, signal); }

  // Its exit status; -1 when a signal ended it.
  int Wait() {
    int status = 0;
    while (waitpid(child_, &status, 0) < 0 && errno == EINTR) {
    }
    child_ = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

  std::string output() const {
    std::ifstream file(output_);
    std::stringstream text;
    text << file.rdbuf();
    return text.str();
  }

 private:
  const std::string output_;
  pid_t child_ = 0;
};

class ProgramTest : public ::testing::Test {
 protected:
  ProgramTest() {
    std::string pattern = ::testing::TempDir() + "/serverXXXXXX";
    folder_ = mkdtemp(pattern.data());
  }
  ~ProgramTest() override { std::filesystem::remove_all(folder_); }

  // What the program says about flags that it does not take.
  std::string Refusal(const std::vector<std::string>& arguments) {
    Program program(folder_, arguments);
    EXPECT_NE(program.Wait(), 0);
    return program.output();
  }

  // What a server writes into its file, once it is there; empty when it does not come.
  std::string WaitForPort(const std::string& file) {
    std::string port;
    if (Eventually([&] { return std::filesystem::exists(file); })) std::ifstream(file) >> port;
    return port;
  }

  // The exit status of the program beside the one that runs.
  int Check(std::vector<std::string> arguments) {
    const std::string other = folder_ + "/check";
    std::filesystem::create_directory(other);
    return Program(other, std::move(arguments)).Wait();
  }

  std::string folder_;
};

TEST_F(ProgramTest, WritesItsPortServesAndEndsWellOnSigterm) {
  for (const int signal : {SIGTERM, SIGINT}) {
    const std::string port_file = folder_ + "/port";
    Program program(folder_, {"--listen=127.0.0.1:0", "--port_file=" + port_file});
    ASSERT_TRUE(Eventually([&] { return std::filesystem::exists(port_file); })) << program.output();
    int port = 0;
    std::ifstream(port_file) >> port;
    EXPECT_GT(port, 0);
    program.Signal(signal);
    EXPECT_EQ(program.Wait(), 0);
    EXPECT_THAT(program.output(), HasSubstr("event=sessions_in_memory_only"));
    EXPECT_THAT(program.output(), HasSubstr("event=drain"));
    EXPECT_THAT(program.output(), HasSubstr("event=stopped"));
    std::filesystem::remove(port_file);
  }
}

TEST_F(ProgramTest, TakesItsFlagsFromAFile) {
  const std::string port_file = folder_ + "/port";
  std::ofstream(folder_ + "/flags")
      << "--listen=127.0.0.1:0\n--memory_budget=7M\n--port_file=" << port_file << "\n";
  Program program(folder_, {"--flagfile=" + folder_ + "/flags"});
  ASSERT_TRUE(Eventually([&] { return std::filesystem::exists(port_file); })) << program.output();
  program.Signal(SIGTERM);
  EXPECT_EQ(program.Wait(), 0);
  EXPECT_THAT(program.output(), HasSubstr("memory_budget=7340032"));
}

TEST_F(ProgramTest, TheSharedMemorySocketExistsWhileItServes) {
  const std::string port_file = folder_ + "/port";
  const std::string side = folder_ + "/side";
  Program program(folder_, {"--listen=127.0.0.1:0", "--port_file=" + port_file,
                            "--shm_socket=" + side, "--shm_uids=0,1000"});
  ASSERT_TRUE(Eventually([&] { return std::filesystem::exists(port_file); })) << program.output();
  EXPECT_TRUE(std::filesystem::is_socket(side));
  program.Signal(SIGTERM);
  EXPECT_EQ(program.Wait(), 0);
  EXPECT_FALSE(std::filesystem::exists(side));
}

TEST_F(ProgramTest, TellsAContainerWhetherAServerServes) {
  const std::string port_file = folder_ + "/port";
  Program program(folder_,
                  {"--listen=0.0.0.0:0", "--allow_insecure_listen", "--port_file=" + port_file});
  const std::string port = WaitForPort(port_file);
  ASSERT_NE(port, "") << program.output();
  EXPECT_EQ(Check({"--healthcheck=127.0.0.1:" + port}), 0);
  EXPECT_EQ(Check({"--healthcheck", "--listen=0.0.0.0:" + port}), 0);
  program.Signal(SIGTERM);
  EXPECT_EQ(program.Wait(), 0);
  EXPECT_EQ(Check({"--healthcheck=127.0.0.1:" + port}), 1);
}

TEST_F(ProgramTest, TellsAContainerByAProbeWhetherAServerServes) {
  const std::string port_file = folder_ + "/port";
  Program program(folder_, {"--listen=127.0.0.1:0", "--metrics_listen=0.0.0.0:0",
                            "--allow_insecure_listen", "--metrics_port_file=" + port_file});
  const std::string port = WaitForPort(port_file);
  ASSERT_NE(port, "") << program.output();
  EXPECT_EQ(Check({"--healthcheck=http://127.0.0.1:" + port + "/readyz"}), 0);
  EXPECT_EQ(Check({"--healthcheck", "--metrics_listen=0.0.0.0:" + port}), 0);
  EXPECT_EQ(Check({"--healthcheck=http://127.0.0.1:" + port + "/none"}), 1);
  EXPECT_EQ(Check({"--healthcheck=https://127.0.0.1:" + port + "/readyz"}), 1);
  EXPECT_EQ(Check({"--healthcheck=http://127.0.0.1:" + port}), 1);
  program.Signal(SIGTERM);
  EXPECT_EQ(program.Wait(), 0);
  EXPECT_EQ(Check({"--healthcheck=http://127.0.0.1:" + port + "/readyz"}), 1);
}

TEST_F(ProgramTest, HelpDocumentsEveryFlagAndNoPathOfTheBuild) {
  Program program(folder_, {"--help"});
  program.Wait();
  const std::string help = program.output();
  for (const char* flag : {"listen",
                           "allow_insecure_listen",
                           "port_file",
                           "data_dir",
                           "durability",
                           "data_dir_lock_wait",
                           "memory_budget",
                           "compute_threads",
                           "max_connections",
                           "max_calls",
                           "max_sessions",
                           "disk_budget",
                           "cache_budget",
                           "default_lease",
                           "max_lease",
                           "report_retention",
                           "stall_timeout",
                           "min_upload_rate",
                           "handshake_timeout",
                           "idle_timeout",
                           "drain_seconds",
                           "reflection",
                           "log_level",
                           "shm_socket",
                           "shm_uids",
                           "token_file",
                           "plugin_dir",
                           "script_dir",
                           "algorithm_timeout",
                           "tls_certificate",
                           "tls_key",
                           "tls_client_ca",
                           "trusted_proxy",
                           "metrics_listen",
                           "metrics_port_file",
                           "healthcheck",
                           "log_format"}) {
    EXPECT_THAT(help, HasSubstr(std::string("--") + flag + " (")) << flag;
  }
  EXPECT_THAT(help, Not(HasSubstr("/server/main.cc")));
}

TEST_F(ProgramTest, RefusesWhatItCannotDo) {
  EXPECT_THAT(Refusal({"--listen=127.0.0.1:0", "--durability=eternal"}), HasSubstr("'eternal'"));
  EXPECT_THAT(Refusal({"--listen=127.0.0.1:0", "--data_dir=" + folder_ + "/no/such"}),
              HasSubstr("/no/such"));
  EXPECT_THAT(Refusal({"--listen=0.0.0.0:0"}), HasSubstr("--allow_insecure_listen"));
  EXPECT_THAT(Refusal({"--listen=127.0.0.1:0", "--metrics_listen=0.0.0.0:0"}),
              HasSubstr("metrics_listen is '0.0.0.0:0'"));
  // What --listen needs does not help here.
  EXPECT_THAT(Refusal({"--listen=127.0.0.1:0", "--metrics_listen=0.0.0.0:0"}),
              ::testing::AllOf(HasSubstr("neither encryption nor authentication"),
                               Not(HasSubstr("set tls_certificate"))));
  EXPECT_THAT(Refusal({"--listen=127.0.0.1:0", "--log_format=xml"}), HasSubstr("xml"));
  EXPECT_THAT(Refusal({"--listen=127.0.0.1:0", "--memory_budget=lots"}),
              HasSubstr("'lots' is not a number of bytes"));
  EXPECT_THAT(Refusal({"--listen=127.0.0.1:0", "--disk_budget=1.5G"}),
              HasSubstr("disk_budget: '1.5G' is not a number of bytes"));
  EXPECT_THAT(Refusal({"--listen=127.0.0.1:0", "--min_upload_rate="}),
              HasSubstr("min_upload_rate: '' is not a number of bytes"));
  EXPECT_THAT(Refusal({"--listen=127.0.0.1:0", "--handshake_timeout=0"}),
              HasSubstr("handshake_timeout is 0; it must be at least 1ms"));
  EXPECT_THAT(Refusal({"--listen=127.0.0.1:0", "--idle_timeout=-1s"}),
              HasSubstr("idle_timeout is -1s; it must be at least 1ms"));
  EXPECT_THAT(Refusal({"--listen=127.0.0.1:0", "--log_level=loud"}), HasSubstr("loud"));
  EXPECT_THAT(Refusal({"--listen=127.0.0.1:0", "--drain_seconds=-1"}), HasSubstr("drain_seconds"));
  EXPECT_THAT(Refusal({"--listen=127.0.0.1:0", "--shm_uids=root"}), HasSubstr("'root'"));
  EXPECT_THAT(Refusal({"--listen=127.0.0.1:0", "--shm_socket=" + folder_}),
              HasSubstr("is not a socket"));
  EXPECT_THAT(Refusal({"--listen=127.0.0.1:0", "--token_file=" + folder_ + "/none"}),
              HasSubstr("token_file '" + folder_ + "/none' cannot be read: No such file"));
  EXPECT_THAT(Refusal({"--listen=127.0.0.1:0", "--tls_key=" + folder_ + "/none"}),
              HasSubstr("tls_certificate and tls_key must both be set"));
  EXPECT_THAT(Refusal({"--listen=127.0.0.1:0", "--trusted_proxy=localhost"}),
              HasSubstr("trusted_proxy: 'localhost' is not an address"));
  EXPECT_THAT(Refusal({"--listen=unix-abstract:compression", "--trusted_proxy=10.0.0.7,unix"}),
              HasSubstr("every user of this host may connect; listen must be unix:PATH"));
  EXPECT_THAT(Refusal({"--listen=127.0.0.1:0", "--shm_socket=" + folder_ + "/side",
                       "--shm_uids=1000,65534"}),
              HasSubstr("shm_uids has 65534"));
  std::ofstream(folder_ + "/tokens") << "# nobody yet\n";
  EXPECT_THAT(
      Refusal({"--listen=127.0.0.1:0", "--token_file=" + folder_ + "/tokens", "--reflection"}),
      HasSubstr("reflection cannot be combined with token_file"));
  EXPECT_THAT(Refusal({"--lisen=127.0.0.1:0"}), HasSubstr("lisen"));
  EXPECT_THAT(Refusal({"stray"}), HasSubstr("unexpected argument 'stray'"));
  EXPECT_THAT(Refusal({"--listen=127.0.0.1:0", "--port_file=" + folder_ + "/none/port"}),
              HasSubstr("cannot write port_file"));
}

}  // namespace
}  // namespace nni_compression::testing
