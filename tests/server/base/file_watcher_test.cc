// Whatever becomes of a file, what was read from it last stays.
#include "server/base/file_watcher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/testing/latch.h"

namespace nni_compression::server {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr size_t kMaxBytes = 10000;

class FileWatcherTest : public ::testing::Test {
 protected:
  FileWatcherTest() { std::filesystem::create_directory(folder_); }
  ~FileWatcherTest() override { std::filesystem::remove_all(folder_); }

  std::string path(const std::string& name) const { return folder_ + "/" + name; }

  // In place, as `cp` does.
  void Write(const std::string& name, const std::string& text) const {
    std::ofstream(path(name)) << text;
  }

  FileWatcher::Options options() const {
    return {"test", {{"first", path("a")}, {"second", path("b")}}, kMaxBytes};
  }

  std::unique_ptr<FileWatcher> Open() {
    Write("a", "one");
    Write("b", "two");
    auto watcher = FileWatcher::Open(options(), [this](const std::vector<FileContents>& contents) {
      for (const FileContents& each : contents) {
        if (each.bytes == "wrong") return absl::InvalidArgumentError("wrong");
      }
      loaded_.push_back(contents[0].bytes + "+" + contents[1].bytes);
      return absl::OkStatus();
    });
    EXPECT_TRUE(watcher.ok()) << watcher.status();
    return *std::move(watcher);
  }

  // What is loaded by as many looks as a change takes.
  std::vector<std::string> LoadedNow(FileWatcher& watcher) {
    loaded_.clear();
    for (int look = 0; look < 2; ++look) watcher.Poll();
    return loaded_;
  }

  std::string Refusal() {
    const auto load = [](const std::vector<FileContents>&) { return absl::OkStatus(); };
    return std::string(FileWatcher::Open(options(), load).status().message());
  }

  const std::string folder_ = absl::StrCat(::testing::TempDir(), "/watched", getpid());
  std::vector<std::string> loaded_;
};

TEST_F(FileWatcherTest, FilesAreLoadedAtTheStartAndWhenOneHasChanged) {
  const auto watcher = Open();
  EXPECT_THAT(loaded_, ElementsAre("one+two"));
  EXPECT_THAT(LoadedNow(*watcher), ElementsAre());
  Write("b", "three");
  EXPECT_THAT(LoadedNow(*watcher), ElementsAre("one+three"));
  EXPECT_THAT(LoadedNow(*watcher), ElementsAre());
  Write("a.new", "four");
  std::filesystem::rename(path("a.new"), path("a"));
  EXPECT_THAT(LoadedNow(*watcher), ElementsAre("four+three"));
}

TEST_F(FileWatcherTest, AFileThatIsBeingWrittenIsNotRead) {
  const auto watcher = Open();
  loaded_.clear();
  for (const char* const text : {"", "f", "fo", "fou"}) {
    Write("a", text);
    watcher->Poll();
  }
  EXPECT_THAT(loaded_, ElementsAre());
  Write("a", "four");
  EXPECT_THAT(LoadedNow(*watcher), ElementsAre("four+two"));
}

TEST_F(FileWatcherTest, AFileThatCannotBeReadChangesNothing) {
  const auto watcher = Open();
  const std::string file = path("a");
  const std::vector<std::pair<std::string, std::function<void()>>> damages = {
      {"missing", [&] { std::filesystem::remove(file); }},
      {"a folder", [&] { std::filesystem::create_directory(file); }},
      {"a pipe", [&] { ASSERT_EQ(mkfifo(file.c_str(), 0600), 0); }},
      {"a device", [&] { std::filesystem::create_symlink("/dev/zero", file); }},
      {"a loop", [&] { std::filesystem::create_symlink(file, file); }},
      {"huge", [&] { Write("a", std::string(kMaxBytes + 1, 'x')); }},
      {"sparse",
       [&] {
         Write("a", "");
         std::filesystem::resize_file(file, std::uintmax_t{1} << 40);
       }},
      {"of the wrong content", [&] { Write("a", "wrong"); }},
  };
  for (const auto& [name, damage] : damages) {
    std::filesystem::remove(file);
    damage();
    EXPECT_THAT(LoadedNow(*watcher), ElementsAre()) << name;
    std::filesystem::remove(file);
    Write("a", name);
    EXPECT_THAT(LoadedNow(*watcher), ElementsAre(name + "+two"));
  }
}

TEST_F(FileWatcherTest, TheFirstReadingSaysWhatIsWrong) {
  Write("a", "one");
  EXPECT_EQ(Refusal(), "second '" + path("b") + "' cannot be read: No such file or directory");
  ASSERT_EQ(mkfifo(path("b").c_str(), 0600), 0);
  EXPECT_THAT(Refusal(), HasSubstr("it is not a regular file"));
  std::filesystem::remove(path("b"));
  Write("b", std::string(kMaxBytes + 1, 'x'));
  EXPECT_THAT(Refusal(), HasSubstr("it has more than 10000 bytes"));
  Write("b", std::string(kMaxBytes, 'x'));
  EXPECT_EQ(Refusal(), "");
}

TEST_F(FileWatcherTest, AThreadLooksByItself) {
  Write("a", "one");
  Write("b", "two");
  const auto changed = std::make_shared<testing::Latch>();
  auto watcher = FileWatcher::Open(options(), [changed](const std::vector<FileContents>& contents) {
    if (contents[0].bytes == "three") changed->Set();
    return absl::OkStatus();
  });
  ASSERT_TRUE(watcher.ok());
  (*watcher)->Start();
  Write("a", "three");
  changed->Wait();
}

TEST_F(FileWatcherTest, ItsEndDoesNotWaitForALookThatDoesNotComeBack) {
  Write("a", "one");
  Write("b", "two");
  struct Stuck {
    bool first = true;
    testing::Latch begun;
    testing::Latch release;
    testing::Latch ended;
  };
  const auto stuck = std::make_shared<Stuck>();
  auto watcher = FileWatcher::Open(options(), [stuck](const std::vector<FileContents>&) {
    if (std::exchange(stuck->first, false)) return absl::OkStatus();
    stuck->begun.Set();
    stuck->release.Wait();
    stuck->ended.Set();
    return absl::OkStatus();
  });
  ASSERT_TRUE(watcher.ok());
  (*watcher)->Start();
  Write("a", "three");
  stuck->begun.Wait();
  watcher->reset();
  stuck->release.Set();
  stuck->ended.Wait();
}

}  // namespace
}  // namespace nni_compression::server
