#include "server/sessions/commit_queue.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "server/base/executor.h"
#include "server/storage/memory_storage.h"
#include "tests/testing/latch.h"

namespace nni_compression::server {
namespace {

using ::nni_compression::testing::Latch;
using ::testing::ElementsAre;
using ::testing::Pair;

// Fails changes of the session "bad", and waits where the test says so.
class TestStorage : public MemoryStorage {
 public:
  std::vector<absl::Status> Apply(absl::Span<const SessionChange> changes) override {
    writing.Set();
    proceed.Wait();
    groups.push_back(static_cast<int>(changes.size()));
    if (!changes.empty()) written = changes.front();
    std::vector<absl::Status> statuses;
    for (const SessionChange& change : changes) {
      statuses.push_back(change.key.second == "bad" ? absl::ResourceExhaustedError("disk full")
                                                    : absl::OkStatus());
    }
    return statuses;
  }

  Latch writing;
  Latch proceed;
  // The queue's thread alone, until it is flushed.
  std::vector<int> groups;
  SessionChange written;  // the first of the last group
};

class CommitQueueTest : public ::testing::Test {
 protected:
  std::shared_ptr<SessionRecord> Record() {
    return std::make_shared<SessionRecord>("t", std::map<std::string, std::string>(),
                                           Strand::Create(&executor_), nullptr, SessionMemory(), 1);
  }

  void Write(const std::shared_ptr<SessionRecord>& record, const std::string& id,
             const std::string& name) {
    SessionChange change;
    change.key = {"t", id};
    commits_.Write(record, std::move(change), Note(name));
  }

  // Notes that `name` was answered, with a "!" where that was an error.
  CommitQueue::Done Note(const std::string& name) {
    return [this, name](const absl::Status& status) {
      MutexLock lock(&mutex_);
      answers_.push_back(status.ok() ? name : name + "!");
    };
  }

  std::vector<std::string> answers() {
    commits_.Flush();
    MutexLock lock(&mutex_);
    return answers_;
  }

  Executor executor_{1};
  TestStorage storage_;
  Mutex mutex_;
  std::vector<std::string> answers_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::shared_ptr<SessionRecord>> taken_back_;
  CommitQueue commits_{&storage_, [this](const std::shared_ptr<SessionRecord>& record,
                                         const absl::Status&) { taken_back_.push_back(record); }};
};

TEST_F(CommitQueueTest, AnswersWaitForTheWritesBeforeThem) {
  const auto one = Record();
  const auto other = Record();
  Write(one, "one", "write");
  commits_.WaitForWrites(one, Note("read"));
  commits_.WaitForWrites(other, Note("other's read"));
  {
    MutexLock lock(&mutex_);
    EXPECT_THAT(answers_, ElementsAre("other's read")) << "it has nothing to wait for";
  }
  storage_.proceed.Set();
  EXPECT_THAT(answers(), ElementsAre("other's read", "write", "read"));
}

TEST_F(CommitQueueTest, AnAnswerIsNotOvertakenWhileItIsGiven) {
  const auto record = Record();
  SessionChange change;
  change.key = {"t", "a"};
  commits_.Write(record, std::move(change), [&](const absl::Status& status) {
    // As another thread may do: the write is over, its answer is not.
    commits_.WaitForWrites(record, Note("read"));
    Note("write")(status);
  });
  storage_.proceed.Set();
  EXPECT_THAT(answers(), ElementsAre("write", "read"));
}

TEST_F(CommitQueueTest, WhatWaitsIsWrittenTogether) {
  const auto record = Record();
  Write(record, "a", "1");
  storage_.writing.Wait();
  for (const char* name : {"2", "3", "4"}) Write(record, name, name);
  storage_.proceed.Set();
  EXPECT_THAT(answers(), ElementsAre("1", "2", "3", "4"));
  EXPECT_THAT(storage_.groups, ElementsAre(1, 3));
}

TEST_F(CommitQueueTest, ChangesOfOneSessionThatWaitAreOne) {
  const auto record = Record();
  Write(record, "a", "1");
  storage_.writing.Wait();
  const auto write = [&](const std::string& name, std::map<int, std::string> layers) {
    SessionChange change;
    change.key = {"t", "a"};
    change.entry = "entry " + name;
    if (name == "2") change.global = "global 2";
    for (const auto& [layer, text] : layers) {
      change.layers[layer] = [text = text] { return text; };
    }
    commits_.Write(record, std::move(change), Note(name));
  };
  write("2", {{0, "old"}, {1, "only"}});
  write("3", {{0, "new"}});
  Write(record, "b", "other");
  write("4", {{2, "last"}});
  storage_.proceed.Set();
  EXPECT_THAT(answers(), ElementsAre("1", "2", "3", "other", "4"));
  EXPECT_THAT(storage_.groups, ElementsAre(1, 2));
  EXPECT_EQ(storage_.written.entry, "entry 4");
  EXPECT_EQ(storage_.written.global, "global 2");
  std::map<int, std::string> layers;
  for (const auto& [layer, text] : storage_.written.layers) layers[layer] = text();
  EXPECT_THAT(layers, ElementsAre(Pair(0, "new"), Pair(1, "only"), Pair(2, "last")));
}

TEST_F(CommitQueueTest, TheBeginningAndTheEndOfASessionAreChangesOfTheirOwn) {
  const auto record = Record();
  Write(record, "a", "1");
  storage_.writing.Wait();
  const auto write = [&](const std::string& name, auto set) {
    SessionChange change;
    change.key = {"t", "a"};
    set(change);
    commits_.Write(record, std::move(change), Note(name));
  };
  write("create", [](SessionChange& change) { change.create.emplace(); });
  Write(record, "a", "2");
  Write(record, "a", "3");
  write("end", [](SessionChange& change) { change.report = "report"; });
  write("forget", [](SessionChange& change) { change.erase = true; });
  storage_.proceed.Set();
  EXPECT_THAT(answers(), ElementsAre("1", "create", "2", "3", "end", "forget"));
  EXPECT_THAT(storage_.groups, ElementsAre(1, 4));
}

TEST_F(CommitQueueTest, AfterAFailureTheSessionSavesNothingUntilItWasTakenBack) {
  const auto bad = Record();
  const auto good = Record();
  Write(bad, "bad", "1");
  storage_.writing.Wait();
  Write(bad, "later", "2");
  Write(good, "good", "3");
  commits_.WaitForWrites(bad, Note("4"));
  storage_.proceed.Set();
  EXPECT_THAT(answers(), ::testing::UnorderedElementsAre("1!", "2!", "3", "4!"));
  EXPECT_THAT(taken_back_, ElementsAre(bad));
  Write(bad, "later", "5");
  commits_.ClearError(bad.get());
  Write(bad, "later", "6");
  EXPECT_THAT(answers(), ::testing::UnorderedElementsAre("1!", "2!", "3", "4!", "5!", "6"));
}

}  // namespace
}  // namespace nni_compression::server
