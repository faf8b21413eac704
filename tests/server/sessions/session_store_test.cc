#include "server/sessions/session_store.h"

#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "server/base/errors.h"
#include "server/base/executor.h"
#include "tests/testing/fake_clock.h"
#include "tests/testing/latch.h"

namespace nni_compression::server {
namespace {

using ::nni_compression::testing::FakeClock;
using ::nni_compression::testing::Latch;

class SessionStoreTest : public ::testing::Test {
 protected:
  SessionStoreTest() {
    options_.max_sessions = 3;
    options_.default_lease = absl::Seconds(10);
    options_.max_lease = absl::Seconds(100);
    options_.report_retention = absl::Seconds(50);
    options_.max_reports = 2;
    MakeStore();
  }
  ~SessionStoreTest() override { timers_.Stop(); }

  void MakeStore() {
    store_ = std::make_unique<SessionStore>(options_, &timers_,
                                            [this](std::shared_ptr<SessionRecord> record) {
                                              MutexLock lock(&mutex_);
                                              retired_.push_back(record->id());
                                            });
  }

  std::shared_ptr<SessionRecord> Record(const std::string& tenant = "t",
                                        std::map<std::string, std::string> labels = {}) {
    return std::make_shared<SessionRecord>(tenant, std::move(labels), Strand::Create(&executor_),
                                           nullptr, SessionMemory(), 100, disk_bytes_);
  }

  SessionUse Bind(const std::string& tenant = "t", std::map<std::string, std::string> labels = {}) {
    auto use = store_->Insert(Record(tenant, std::move(labels)), "", "", std::nullopt);
    EXPECT_TRUE(use.ok()) << use.status();
    return *std::move(use);
  }

  // A session that nobody calls any more.
  std::string BindAndLeave(const std::string& tenant = "t",
                           std::map<std::string, std::string> labels = {}) {
    return Bind(tenant, std::move(labels))->id();
  }

  absl::StatusCode CodeOf(const std::string& id, const std::string& tenant = "t") {
    return store_->Use(tenant, id).status().code();
  }

  // Moves the clock, and returns when all timers that are due have run.
  void Advance(absl::Duration by) {
    clock_.Advance(by);
    Latch ran;
    timers_.RunAt(clock_.Now(), [&] { ran.Set(); });
    ran.Wait();
  }

  std::vector<std::string> retired() {
    MutexLock lock(&mutex_);
    return retired_;
  }

  // How many live sessions each tenant has.
  std::map<std::string, int64_t> LiveByTenant() {
    std::map<std::string, int64_t> sessions;
    for (const auto& [tenant, live] : store_->LiveByTenant()) sessions[tenant] = live.sessions;
    return sessions;
  }

  int64_t disk_bytes_ = 0;  // of new records
  FakeClock clock_;
  Executor executor_{1};
  TimerThread timers_{&clock_};
  SessionStore::Options options_;
  Mutex mutex_;
  std::vector<std::string> retired_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<SessionStore> store_;
};

TEST_F(SessionStoreTest, IdsAre128RandomBits) {
  std::set<std::string> ids = {BindAndLeave(), BindAndLeave(), BindAndLeave()};
  EXPECT_EQ(ids.size(), 3u);
  for (const std::string& id : ids) {
    EXPECT_EQ(id.size(), 32u);
    EXPECT_EQ(id.find_first_not_of("0123456789abcdef"), std::string::npos);
  }
}

TEST_F(SessionStoreTest, AnotherTenantsSessionDoesNotExist) {
  const std::string id = BindAndLeave("one");
  EXPECT_EQ(CodeOf(id, "one"), absl::StatusCode::kOk);
  EXPECT_EQ(CodeOf(id, "two"), absl::StatusCode::kNotFound);
  EXPECT_EQ(store_->Close("two", id).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(store_->FindReport("two", id).status().code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(store_->List("two", {}, 10, "")->sessions.empty());
}

TEST_F(SessionStoreTest, ASessionExpiresWhenItSeesNoCallForItsLease) {
  const std::string id = BindAndLeave();
  Advance(absl::Seconds(9));
  EXPECT_EQ(CodeOf(id), absl::StatusCode::kOk);  // a call, which renews the lease
  Advance(absl::Seconds(9));
  EXPECT_EQ(store_->live(), 1);
  Advance(absl::Seconds(1));
  EXPECT_EQ(store_->live(), 0);
  EXPECT_EQ(retired(), std::vector<std::string>{id});
  EXPECT_EQ(CodeOf(id), absl::StatusCode::kNotFound);
  EXPECT_EQ((*store_->FindReport("t", id))->state(), SessionState::kExpired);
}

TEST_F(SessionStoreTest, ACallThatRunsHoldsTheLease) {
  SessionUse use = Bind();
  Advance(absl::Seconds(1000));
  EXPECT_EQ(store_->live(), 1);
  EXPECT_EQ(store_->Times(*use).lease_left, absl::Seconds(10));
  use.Drop();
  Advance(absl::Seconds(10));
  EXPECT_EQ(store_->live(), 0);
}

TEST_F(SessionStoreTest, TheLeaseAskedForIsClamped) {
  const auto lease = [&](absl::Duration asked) {
    auto use = store_->Insert(Record(), "", "", asked);
    return store_->Times(**use).lease;
  };
  EXPECT_EQ(lease(absl::Milliseconds(1)), absl::Seconds(1));
  EXPECT_EQ(lease(absl::Hours(1)), absl::Seconds(100));
  EXPECT_EQ(lease(absl::Seconds(7)), absl::Seconds(7));
}

TEST_F(SessionStoreTest, ARetriedRequestGetsTheSameSession) {
  const auto first = store_->Insert(Record(), "r", "content", std::nullopt);
  const auto retry = store_->Insert(Record(), "r", "content", std::nullopt);
  EXPECT_EQ((*first)->id(), (*retry)->id());
  EXPECT_EQ((*store_->FindRequest("t", "r", "content"))->id(), (*first)->id());
  EXPECT_FALSE(*store_->FindRequest("t", "another", "content"));
  EXPECT_FALSE(*store_->FindRequest("other", "r", "content"));
  EXPECT_EQ(store_->live(), 1);
  const auto foreign = store_->Insert(Record("other"), "r", "else", std::nullopt);
  EXPECT_TRUE(foreign.ok()) << "request ids belong to a tenant";
}

TEST_F(SessionStoreTest, ARequestIdWithOtherContentIsRefused) {
  const auto first = store_->Insert(Record(), "r", "content", std::nullopt);
  const auto other = store_->Insert(Record(), "r", "other content", std::nullopt);
  EXPECT_EQ(other.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(store_->live(), 1);
}

TEST_F(SessionStoreTest, ARequestIdIsFreeAgainWhenItsSessionHasEnded) {
  std::string first;
  {
    const auto use = store_->Insert(Record(), "r", "content", std::nullopt);
    first = (*use)->id();
  }
  ASSERT_TRUE(store_->Close("t", first).ok());
  const auto again = store_->Insert(Record(), "r", "content", std::nullopt);
  EXPECT_NE((*again)->id(), first);
}

TEST_F(SessionStoreTest, ClosingAClosedOrExpiredSessionSucceeds) {
  const std::string closed = BindAndLeave();
  EXPECT_TRUE(store_->Close("t", closed).ok());
  EXPECT_TRUE(store_->Close("t", closed).ok());
  EXPECT_EQ(retired(), std::vector<std::string>{closed}) << "it ends once";
  const std::string expired = BindAndLeave();
  Advance(absl::Seconds(10));
  EXPECT_TRUE(store_->Close("t", expired).ok());
  EXPECT_EQ(store_->Close("t", "never").code(), absl::StatusCode::kNotFound);
}

TEST_F(SessionStoreTest, ReportsAreForgottenAfterAWhile) {
  const std::string id = BindAndLeave();
  ASSERT_TRUE(store_->Close("t", id).ok());
  Advance(absl::Seconds(49));
  EXPECT_TRUE(store_->FindReport("t", id).ok());
  Advance(absl::Seconds(1));
  EXPECT_EQ(store_->FindReport("t", id).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(SessionStoreTest, ATenantDropsNoReportsOfOthers) {
  const std::string id = BindAndLeave("quiet");
  ASSERT_TRUE(store_->Close("quiet", id).ok());
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(store_->Close("busy", BindAndLeave("busy")).ok());
  EXPECT_TRUE(store_->FindReport("quiet", id).ok());
}

TEST_F(SessionStoreTest, ReportsOfTheTenantWithMostAreDroppedWhenAllOfThemAreTooMuch) {
  options_.all_report_bytes = 250;  // of 100 each
  MakeStore();
  const std::string id = BindAndLeave("quiet");
  ASSERT_TRUE(store_->Close("quiet", id).ok());
  std::vector<std::string> ids;
  for (int i = 0; i < 3; ++i) {
    ids.push_back(BindAndLeave("busy"));
    Advance(absl::Seconds(1));
    ASSERT_TRUE(store_->Close("busy", ids.back()).ok());
  }
  EXPECT_TRUE(store_->FindReport("quiet", id).ok());
  EXPECT_TRUE(store_->FindReport("busy", ids[2]).ok());
  EXPECT_FALSE(store_->FindReport("busy", ids[1]).ok());
}

TEST_F(SessionStoreTest, AReportCountsTheSourcesOfStatistics) {
  options_.all_report_bytes = 500;
  MakeStore();
  const std::string plain = BindAndLeave("t");
  ASSERT_TRUE(store_->Close("t", plain).ok());
  SessionRecord::Summary summary;
  summary.statistic_sources = 3;
  std::string large;
  {
    const SessionUse use = Bind("u");
    use->SetSummary(summary);
    large = use->id();
  }
  ASSERT_TRUE(store_->Close("u", large).ok());
  EXPECT_TRUE(store_->FindReport("t", plain).ok());
  EXPECT_FALSE(store_->FindReport("u", large).ok());
}

TEST_F(SessionStoreTest, TheOldestReportMakesRoomForANewOne) {
  std::vector<std::string> ids;
  for (int i = 0; i < 3; ++i) {
    ids.push_back(BindAndLeave());
    ASSERT_TRUE(store_->Close("t", ids.back()).ok());
    Advance(absl::Seconds(1));
  }
  EXPECT_FALSE(store_->FindReport("t", ids[0]).ok());
  EXPECT_TRUE(store_->FindReport("t", ids[1]).ok());
  EXPECT_TRUE(store_->FindReport("t", ids[2]).ok());
}

TEST_F(SessionStoreTest, TooManySessionsAreRefusedWithATimeToWait) {
  for (int i = 0; i < 3; ++i) BindAndLeave();
  const auto fourth = store_->Insert(Record(), "", "", std::nullopt);
  EXPECT_EQ(fourth.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(RetryAfter(fourth.status()), absl::Seconds(10)) << "when the next lease ends";
  Advance(absl::Seconds(10));
  EXPECT_TRUE(store_->Insert(Record(), "", "", std::nullopt).ok());
}

TEST_F(SessionStoreTest, ATenantsQuotaCountsItsOwnLiveSessions) {
  const auto insert = [&](const std::string& tenant, int64_t sessions) {
    access::Quota quota;
    quota.sessions = sessions;
    return store_->Insert(Record(tenant), "", "", std::nullopt, quota).status();
  };
  const std::string first = BindAndLeave("a");
  EXPECT_TRUE(insert("b", 1).ok());
  EXPECT_EQ(insert("a", 1).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(RetryAfter(insert("a", 1)), absl::Seconds(10));
  EXPECT_FALSE(RetryAfter(insert("c", 0))) << "no waiting helps";
  EXPECT_EQ(LiveByTenant(), (std::map<std::string, int64_t>{{"a", 1}, {"b", 1}}));
  ASSERT_TRUE(store_->Close("a", first).ok());
  EXPECT_EQ(LiveByTenant(), (std::map<std::string, int64_t>{{"b", 1}}));
  EXPECT_TRUE(insert("a", 1).ok());
}

TEST_F(SessionStoreTest, ATenantsQuotaOfDiskCountsWhatItsLiveSessionsTake) {
  disk_bytes_ = 60;
  const auto insert = [&](const std::string& tenant, int64_t disk) {
    access::Quota quota;
    quota.disk = disk;
    return store_->Insert(Record(tenant), "", "", std::nullopt, quota).status();
  };
  EXPECT_TRUE(insert("a", 119).ok());
  EXPECT_TRUE(insert("b", 60).ok());
  EXPECT_EQ(store_->LiveByTenant().at("a").disk_bytes, 60);
  const absl::Status refused = insert("a", 119);
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(refused.message(),
            "the tenant's quota of disk is 119, of which 60 are in use; the call needs 60 more");
  EXPECT_EQ(RetryAfter(refused), absl::Seconds(10)) << "when the next lease ends";
  EXPECT_FALSE(RetryAfter(insert("c", 59))) << "no waiting helps";
  EXPECT_TRUE(insert("a", 120).ok());
  Advance(absl::Seconds(10));
  EXPECT_TRUE(store_->LiveByTenant().empty());
  EXPECT_TRUE(insert("a", 60).ok());
}

TEST_F(SessionStoreTest, TheDiskBudgetCountsTheLiveSessionsOfAll) {
  options_.disk_budget = 100;
  MakeStore();
  disk_bytes_ = 40;
  const std::string first = BindAndLeave("a");
  BindAndLeave("b");
  const auto third = store_->Insert(Record("c"), "", "", std::nullopt);
  EXPECT_EQ(third.status().message(),
            "the server's disk_budget is 100 bytes; less than the 40 bytes that the session needs "
            "are left");
  EXPECT_EQ(RetryAfter(third.status()), absl::Seconds(10));
  ASSERT_TRUE(store_->Close("a", first).ok());
  EXPECT_TRUE(store_->Insert(Record("c"), "", "", std::nullopt).ok());
  disk_bytes_ = 101;
  const auto never = store_->Insert(Record("c"), "", "", std::nullopt);
  EXPECT_EQ(never.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_FALSE(RetryAfter(never.status())) << "no waiting helps";
}

TEST_F(SessionStoreTest, WhoseASessionIsAndThoseOfAllCanBeAsked) {
  const std::string a = BindAndLeave("a");
  const std::string b = BindAndLeave("b");
  EXPECT_EQ(store_->TenantOf(b), "b");
  EXPECT_EQ(store_->TenantOf("none"), std::nullopt);
  EXPECT_EQ(store_->List(std::nullopt, {}, 10, "")->sessions.size(), 2u);
  EXPECT_EQ(store_->List("a", {}, 10, "")->sessions.size(), 1u);
}

TEST_F(SessionStoreTest, ListsByLabelOldestFirstInPages) {
  const std::string a = BindAndLeave("t", {{"run", "7"}, {"x", "1"}});
  const std::string b = BindAndLeave("t", {{"run", "8"}});
  const std::string c = BindAndLeave("t", {{"run", "7"}});
  const auto first = store_->List("t", {{"run", "7"}}, 1, "");
  ASSERT_EQ(first->sessions.size(), 1u);
  EXPECT_EQ(first->sessions[0]->id(), a);
  ASSERT_FALSE(first->next_token.empty());
  const auto second = store_->List("t", {{"run", "7"}}, 1, first->next_token);
  ASSERT_EQ(second->sessions.size(), 1u);
  EXPECT_EQ(second->sessions[0]->id(), c);
  EXPECT_EQ(second->next_token, "");
  EXPECT_EQ(store_->List("t", {}, 10, "")->sessions.size(), 3u);
  EXPECT_EQ(store_->List("t", {{"run", "7"}, {"x", "1"}}, 10, "")->sessions.size(), 1u);
  EXPECT_EQ(store_->List("t", {}, 10, "nonsense").status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(SessionStoreTest, EndedSessionsAreListedWhereTheyBeganAsLongAsTheirReportsAreKept) {
  options_.max_sessions = options_.max_reports = 10;
  MakeStore();
  std::vector<std::string> ids;
  for (int i = 0; i < 5; ++i) ids.push_back(BindAndLeave("t", {{"run", i == 3 ? "8" : "7"}}));
  const std::string foreign = BindAndLeave("other", {{"run", "7"}});
  ASSERT_TRUE(store_->Close("t", ids[0]).ok());
  ASSERT_TRUE(store_->Close("t", ids[3]).ok());
  const auto all = [this](
                       const std::map<std::string, std::string>& labels,
                       const std::function<void()>& between = [] {}) {
    std::vector<std::string> found;
    std::string token;
    do {
      const auto page = store_->List("t", labels, 1, token, /*include_ended=*/true);
      EXPECT_TRUE(page.ok()) << page.status();
      for (const auto& session : page->sessions) found.push_back(session->id());
      token = page->next_token;
      between();
    } while (!token.empty());
    return found;
  };
  EXPECT_EQ(all({}), ids);
  EXPECT_EQ(store_->List(std::nullopt, {}, 10, "", true)->sessions.size(), 6u) << "an operator";
  EXPECT_EQ(store_->List("nobody", {}, 10, "", true)->sessions.size(), 0u);
  EXPECT_EQ(all({{"run", "7"}}), (std::vector<std::string>{ids[0], ids[1], ids[2], ids[4]}));
  EXPECT_EQ(store_->List("t", {}, 10, "")->sessions.size(), 3u) << "live ones";
  // Those that end between two pages are neither lost nor repeated.
  EXPECT_EQ(all({}, [&] { ASSERT_TRUE(store_->Close("t", ids[2]).ok()); }), ids);
  EXPECT_EQ(all({}, [&] { ASSERT_TRUE(store_->Close("t", ids[1]).ok()); }), ids);
  Advance(options_.default_lease);
  EXPECT_EQ(all({}), ids) << "expired ones, too";
  Advance(options_.report_retention);
  EXPECT_TRUE(all({}).empty());
}

TEST_F(SessionStoreTest, ASessionClosedUnderACallIsNotUsedAgain) {
  SessionUse use = Bind();
  const std::string id = use->id();
  ASSERT_TRUE(store_->Close("t", id).ok());
  EXPECT_EQ(use->state(), SessionState::kClosed);
  use.Drop();
  Advance(absl::Seconds(10));
  EXPECT_EQ(retired().size(), 1u);
}

TEST_F(SessionStoreTest, APageTokenTellsNothing) {
  const auto token = [this](const char* tenant) {
    const std::vector<SessionUse> uses = [&] {
      std::vector<SessionUse> two;
      two.push_back(Bind(tenant));
      two.push_back(Bind(tenant));
      return two;
    }();
    return store_->List(tenant, {}, 1, "")->next_token;
  };
  const std::string first = token("a");
  EXPECT_EQ(first.size(), 32u);
  options_.max_sessions = 100;
  MakeStore();
  EXPECT_EQ(store_->List("a", {}, 1, first).status().code(), absl::StatusCode::kInvalidArgument)
      << "another server's";
  std::vector<SessionUse> uses;
  for (int i = 0; i < 3; ++i) uses.push_back(Bind("a"));
  const std::string mine = store_->List("a", {}, 2, "")->next_token;
  EXPECT_EQ(store_->List("a", {}, 2, mine)->sessions.size(), 1u);
  for (int i = 0; i < 3; ++i) uses.push_back(Bind("b"));
  EXPECT_EQ(store_->List("a", {}, 2, "")->next_token, mine) << "whatever others do";
  // Another tenant's, or an operator's, or one that was made up, is none.
  EXPECT_EQ(store_->List("b", {}, 2, mine).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(store_->List(std::nullopt, {}, 2, mine).status().code(),
            absl::StatusCode::kInvalidArgument);
  std::string forged = mine;
  forged[31] = forged[31] == '0' ? '1' : '0';
  EXPECT_EQ(store_->List("a", {}, 2, forged).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(store_->List("a", {}, 2, std::string(32, 'x')).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace nni_compression::server
