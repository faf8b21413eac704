// Sessions of servers that share a storage: what was answered is there, and nothing else.
#include "server/sessions/durable_sessions.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "compression/algorithms/registry.h"
#include "compression/session/session.h"
#include "server/base/executor.h"
#include "server/convert/convert.h"
#include "server/storage/memory_storage.h"
#include "tests/testing/test_server.h"

namespace nni_compression::testing {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

using Results = std::map<std::string, double>;

MATCHER_P(HasResults, results, "") {
  return Results(arg.results().begin(), arg.results().end()) == results;
}

// A storage that can be told to fail, or to lose a session's state.
class FaultyStorage : public server::MemoryStorage {
 public:
  std::vector<absl::Status> Apply(absl::Span<const server::SessionChange> changes) override {
    if (!full) return MemoryStorage::Apply(changes);
    return std::vector<absl::Status>(changes.size(),
                                     absl::ResourceExhaustedError("cannot write '/data/x'"));
  }
  absl::StatusOr<server::StoredSession> Load(const server::SessionKey& key) override {
    ++loads;
    if (damaged || key.second == damaged_row)
      return absl::DataLossError("file '/data/x' is damaged");
    return MemoryStorage::Load(key);
  }
  absl::StatusOr<std::vector<server::CatalogueRow>> List() override {
    auto rows = MemoryStorage::List();
    for (server::CatalogueRow& row : *rows) {
      if (sequence) row.sequence = *sequence;
      if (row.key.second != damaged_row) continue;
      row.damaged = true;
      row.lease = -absl::Seconds(1);
    }
    return rows;
  }

  std::atomic<bool> full{false};
  std::atomic<bool> damaged{false};
  std::atomic<int> loads{0};
  std::optional<uint64_t> sequence;  // of every session, at the next start
  std::string damaged_row;           // the session whose row it is
};

// A storage whose next writes wait, while it is held.
class HeldStorage : public server::MemoryStorage {
 public:
  std::vector<absl::Status> Apply(absl::Span<const server::SessionChange> changes) override {
    if (held) {
      entered.Set();
      release.Wait();
    }
    return MemoryStorage::Apply(changes);
  }

  std::atomic<bool> held{false};
  Latch entered, release;
};

// A change that is queued behind the session's end is lost, and so it should be; the last report is
// not.
TEST(DurableSessionsQueueTest, ACallBesideCloseSessionDoesNotTakeTheLayersFromTheLastReport) {
  HeldStorage storage;
  FakeClock clock;
  server::TimerThread timers(&clock);
  server::Executor executor(1);
  server::SessionStore sessions({}, &timers, [](const auto&) {});
  const auto budget = server::MemoryBudget::Create(1 << 20, [](const auto& run) { run(); });
  server::DurableSessions durable(
      {&storage, &sessions, [&](absl::string_view) { return &executor; }, budget.get(),
       [](const std::string&) { return nullptr; }, &compression::Registry::Builtin()});
  const v1::BindModelRequest request = BindRequest("level", {{"sparsity", 0.5}}, {{"a", {4}}});
  const auto make = [&] {
    auto session =
        compression::Session::Bind(compression::Registry::Builtin(), *server::ToBinding(request));
    auto record = std::make_shared<server::SessionRecord>(
        "t", std::map<std::string, std::string>(), server::Strand::Create(&executor),
        *std::move(session), server::SessionMemory(budget.get(), {}), 100);
    return *sessions.Insert(record, "", "", std::nullopt);
  };
  const auto on_strand = [](server::SessionRecord& record, const std::function<void()>& function) {
    Latch done;
    record.strand().Post([&] {
      function();
      done.Set();
    });
    done.Wait();
  };
  server::SessionUse use = make();
  Latch created, ended, saved;
  on_strand(*use, [&] {
    durable.Create(use.record(), request, "fingerprint", [&](const auto&) { created.Set(); });
  });
  created.Wait();
  storage.held = true;
  server::SessionUse other = make();
  on_strand(*other,
            [&] { durable.Create(other.record(), request, "fingerprint", [](const auto&) {}); });
  storage.entered.Wait();  // what is queued now is written at once after that
  on_strand(*use, [&] {
    durable.End(use.record(), {}, [&](const absl::Status& status) {
      EXPECT_TRUE(status.ok()) << status;
      ended.Set();
    });
    ASSERT_TRUE(use->session()->UpdateEpoch(3).ok());
    durable.Save(use.record(), *use->session(), [&](const auto& revision) {
      EXPECT_TRUE(absl::IsNotFound(revision.status())) << revision.status();
      saved.Set();
    });
  });
  // So calls find it ended already, although it has its session for the last report.
  on_strand(*use, [&] {
    EXPECT_TRUE(use->ending());
    EXPECT_TRUE(absl::IsNotFound(server::NoSession(*use)));
  });
  storage.held = false;
  storage.release.Set();
  ended.Wait();
  saved.Wait();
  on_strand(*use, [&] { EXPECT_NE(use->session(), nullptr); });
  use.Drop();
  other.Drop();
  durable.Stop();
  timers.Stop();
}

class DurableSessionsTest : public ::testing::Test {
 protected:
  DurableSessionsTest() { Restart(); }

  void Restart() {
    server_.reset();
    server::ServerOptions options;
    options.storage = storage_;
    options.sessions.default_lease = absl::Minutes(5);
    options.sessions.report_retention = absl::Hours(1);
    server_ = std::make_unique<TestServer>(options);
  }

  v1::CompressionService::Stub& stub() { return server_->stub(); }

  std::string BindAgp(const std::string& request_id = "") {
    auto request = BindRequest("agp", {{"final_sparsity", 0.8}, {"end_epoch", 10}},
                               {{"a", {100}}, {"b", {100}}});
    request.set_request_id(request_id);
    (*request.mutable_labels())["run"] = "7";
    return Bind(stub(), request);
  }

  // The mask of layer `name` for the weight 1, 2, ... 100 times `sign`.
  grpc::Status Mask(const std::string& id, const std::string& name, std::string* bits,
                    float first = 1) {
    std::vector<float> weight(100);
    for (int i = 0; i < 100; ++i) weight[i] = first + static_cast<float>(i);
    MaskMessage message;
    message.Open(id).Tensor(Header(0, name, {100}), Bytes(weight));
    v1::CalcMaskResponse response;
    const grpc::Status status = CalcMask(stub(), message, &response);
    bits->clear();
    for (const v1::Chunk& chunk : response.chunks()) bits->append(chunk.payload());
    return status;
  }

  v1::GetSessionResponse Get(const std::string& id) {
    v1::GetSessionResponse response;
    const grpc::Status status = GetSession(stub(), id, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }

  std::vector<v1::Session> List(bool include_ended) {
    grpc::ClientContext context;
    v1::ListSessionsRequest request;
    request.set_include_ended(include_ended);
    v1::ListSessionsResponse response;
    EXPECT_TRUE(stub().ListSessions(&context, request, &response).ok());
    return {response.sessions().begin(), response.sessions().end()};
  }

  // Bytes of a live session's records.
  int64_t Stored(const std::string& id) {
    const auto session = storage_->Load({"default", id});
    EXPECT_TRUE(session.ok()) << session.status();
    size_t bytes = session->binding.size() + session->global.size();
    for (const auto& [layer, record] : session->layers) bytes += record.size();
    const auto catalogue = storage_->List();
    EXPECT_TRUE(catalogue.ok()) << catalogue.status();
    for (const auto& row : *catalogue) {
      if (row.key.second == id) bytes += row.entry.size() + row.fingerprint.size();
    }
    return static_cast<int64_t>(bytes);
  }

  const std::shared_ptr<FaultyStorage> storage_ = std::make_shared<FaultyStorage>();
  std::unique_ptr<TestServer> server_;
};

TEST_F(DurableSessionsTest, ASessionGoesOnAfterARestartAsIfThereHadBeenNone) {
  const std::string id = BindAgp();
  v1::UpdateEpochResponse epoch;
  ASSERT_TRUE(UpdateEpoch(stub(), id, 3, &epoch).ok());
  std::string before;
  ASSERT_TRUE(Mask(id, "a", &before).ok());
  Restart();

  std::string after;
  ASSERT_TRUE(Mask(id, "a", &after, -200).ok());  // the first weight of the epoch decided
  EXPECT_EQ(after, before);
  EXPECT_EQ(before.size(), 13u);
  const v1::Session session = Get(id).session();
  EXPECT_EQ(session.epoch(), 3);
  EXPECT_EQ(session.labels().at("run"), "7");
  EXPECT_EQ(session.layers(0).stale(), false);
  EXPECT_EQ(session.layers(1).stale(), true) << "it was never answered";
}

TEST_F(DurableSessionsTest, ASessionThatWentOnFromACheckpointGoesOnAfterARestartToo) {
  v1::BindModelRequest request = BindRequest("naive", {}, {{"a", {100}}});
  request.set_step(7);
  request.set_step_applied(true);
  v1::LayerMemory* layer = request.add_memory();
  layer->set_layer("a");
  v1::Memory* scale = layer->add_memory();
  scale->set_name("scale");
  scale->add_values(25.0f);
  const std::string id = Bind(stub(), request);
  Restart();
  v1::QuantizeWeightResponse response;
  const std::vector<float> weight(100, 1.0f);
  ASSERT_TRUE(RunCall<QuantizeStream>(
                  stub(), QuantizeMessage().Open(id).Tensor(Header(0, "a", {100}), Bytes(weight)),
                  &response)
                  .ok());
  EXPECT_EQ(response.results(0).memory(0).values(0), 25.0f);
}

TEST_F(DurableSessionsTest, WhatASessionCountsForCoversWhatIsStoredOfIt) {
  std::map<std::string, std::vector<int64_t>> layers;
  for (int i = 0; i < 100; ++i) layers[absl::StrCat("a.layer.with.some.name.", i)] = {100 + i};
  for (const std::string& algorithm :
       {std::string("level"), std::string("dorefa"), std::string("naive"), std::string("qat")}) {
    const bool prunes = algorithm == "level";
    std::map<std::string, double> options;
    if (prunes) options["sparsity"] = 0.5;
    const std::string id = Bind(stub(), BindRequest(algorithm, options, layers));
    const int64_t before = Stored(id);
    MaskMessage masks;
    QuantizeMessage weights;
    masks.Open(id);
    weights.Open(id);
    uint32_t index = 0;
    for (const auto& [name, shape] : layers) {
      const std::string weight = Bytes(std::vector<float>(static_cast<size_t>(shape[0]), 1.5f));
      masks.Tensor(Header(index, name, shape), weight);
      weights.Tensor(Header(index++, name, shape), weight);
    }
    v1::CalcMaskResponse mask;
    v1::QuantizeWeightResponse quantized;
    const grpc::Status status = prunes ? CalcMask(stub(), masks, &mask)
                                       : RunCall<QuantizeStream>(stub(), weights, &quantized);
    ASSERT_TRUE(status.ok()) << status.error_message();
    EXPECT_GT(Stored(id), before) << algorithm;
    EXPECT_LE(Stored(id), static_cast<int64_t>(Get(id).session().disk_bytes())) << algorithm;
    EXPECT_TRUE(CloseSession(stub(), id).ok());
    EXPECT_EQ(Get(id).session().disk_bytes(), 0u);
  }
}

TEST_F(DurableSessionsTest, WhatASessionCountsForCoversItsResults) {
  const std::string id = Bind(stub(), BindRequest("level", {{"sparsity", 0.5}}, {{"a", {1}}}));
  Results results;
  for (int i = 10; i < 74; ++i) results[absl::StrCat(std::string(62, 'r'), i)] = 1.0 / i;
  ASSERT_TRUE(ReportResults(stub(), id, results).ok());
  EXPECT_GT(Stored(id), 64 * 64);
  EXPECT_LE(Stored(id), static_cast<int64_t>(Get(id).session().disk_bytes()));
}

TEST_F(DurableSessionsTest, ListingReadsNoState) {
  const std::string id = BindAgp();
  std::string bits;
  v1::UpdateEpochResponse epoch;
  ASSERT_TRUE(UpdateEpoch(stub(), id, 3, &epoch).ok());
  ASSERT_TRUE(Mask(id, "a", &bits).ok());
  const v1::Session before = Get(id).session();
  Restart();
  grpc::ClientContext context;
  v1::ListSessionsResponse list;
  ASSERT_TRUE(stub().ListSessions(&context, {}, &list).ok());
  ASSERT_EQ(list.sessions_size(), 1);
  const v1::Session& session = list.sessions(0);
  EXPECT_EQ(session.id(), id);
  EXPECT_EQ(session.algorithm(), "agp");
  EXPECT_EQ(session.epoch(), 3);
  EXPECT_EQ(session.layer_count(), 2u);
  EXPECT_EQ(session.compressed_layer_count(), 2u);
  EXPECT_EQ(session.achieved_sparsity(), before.achieved_sparsity());
  EXPECT_EQ(session.create_time().seconds(), before.create_time().seconds());
  EXPECT_EQ(storage_->loads, 0);
}

TEST_F(DurableSessionsTest, ResultsOutliveTheServerAndTheSession) {
  const std::string id = BindAgp();
  const auto revision = Get(id).session().revision();
  ASSERT_TRUE(ReportResults(stub(), id, {{"accuracy", 0.9}, {"loss", 0.5}}).ok());
  const auto reported = Get(id).session().revision();
  EXPECT_GT(reported, revision);
  ASSERT_TRUE(ReportResults(stub(), id, {{"accuracy", 0.9}}).ok());
  EXPECT_EQ(Get(id).session().revision(), reported) << "a retry changes nothing";
  Restart();
  EXPECT_THAT(List(true), ElementsAre(HasResults(Results{{"accuracy", 0.9}, {"loss", 0.5}})));
  EXPECT_EQ(storage_->loads, 0);
  ASSERT_TRUE(ReportResults(stub(), id, {{"accuracy", 0.95}}).ok());
  ASSERT_TRUE(CloseSession(stub(), id).ok());
  Restart();
  EXPECT_THAT(List(false), ::testing::IsEmpty());
  const std::vector<v1::Session> listed = List(true);
  EXPECT_THAT(listed, ElementsAre(HasResults(Results{{"accuracy", 0.95}, {"loss", 0.5}})));
  EXPECT_EQ(listed[0].state(), v1::SESSION_STATE_CLOSED);
  EXPECT_EQ(listed[0].config_list_size(), 0);
  const v1::Session report = Get(id).session();
  EXPECT_THAT(report, HasResults(Results{{"accuracy", 0.95}, {"loss", 0.5}}));
  ASSERT_EQ(report.config_list_size(), 1);
  EXPECT_EQ(report.config_list(0).fields().at("final_sparsity").number_value(), 0.8);
}

TEST_F(DurableSessionsTest, ResultsThatAreNotStoredAreNotShown) {
  const std::string id = BindAgp();
  ASSERT_TRUE(ReportResults(stub(), id, {{"accuracy", 0.9}}).ok());
  storage_->full = true;
  EXPECT_EQ(ReportResults(stub(), id, {{"accuracy", 0.1}, {"loss", 1}}).error_code(),
            grpc::StatusCode::RESOURCE_EXHAUSTED);
  storage_->full = false;
  EXPECT_THAT(Get(id).session(), HasResults(Results{{"accuracy", 0.9}}));
}

TEST_F(DurableSessionsTest, ResultsThatComeWhileTheEndIsStoredAreRefused) {
  for (int i = 0; i < 20; ++i) {
    const std::string id = BindAgp();
    std::atomic<bool> closed{false};
    Results kept;
    std::thread reporter([&] {
      for (int j = 0; j < 64 && !closed; ++j) {
        const std::string name = absl::StrCat("result ", j);
        if (ReportResults(stub(), id, {{name, j}}).ok()) kept[name] = j;
      }
    });
    EXPECT_TRUE(CloseSession(stub(), id).ok());
    closed = true;
    reporter.join();
    EXPECT_THAT(Get(id).session(), HasResults(kept));
  }
  const std::vector<v1::Session> shown = List(true);
  Restart();
  const std::vector<v1::Session> stored = List(true);
  ASSERT_EQ(stored.size(), shown.size());
  for (size_t i = 0; i < stored.size(); ++i) {
    EXPECT_THAT(stored[i],
                HasResults(Results(shown[i].results().begin(), shown[i].results().end())));
  }
}

TEST_F(DurableSessionsTest, AnEndThatCouldNotBeStoredLeavesTheSession) {
  const std::string id = BindAgp();
  storage_->full = true;
  EXPECT_EQ(CloseSession(stub(), id).error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  storage_->full = false;
  EXPECT_TRUE(ReportResults(stub(), id, {{"accuracy", 0.9}}).ok());
  EXPECT_TRUE(CloseSession(stub(), id).ok());
  EXPECT_THAT(Get(id).session(), HasResults(Results{{"accuracy", 0.9}}));
}

TEST_F(DurableSessionsTest, ManyCallsAtOnceReadASessionOnce) {
  const std::string id = BindAgp();
  Restart();
  std::vector<std::thread> callers;
  for (int i = 0; i < 8; ++i) {
    callers.emplace_back([&] {
      std::string bits;
      EXPECT_TRUE(Mask(id, "a", &bits).ok());
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(storage_->loads, 1);
}

TEST_F(DurableSessionsTest, ARetriedBindGetsTheSameSessionAfterARestart) {
  const std::string id = BindAgp("request 1");
  Restart();
  EXPECT_EQ(BindAgp("request 1"), id);
  EXPECT_NE(BindAgp("request 2"), id);
}

TEST_F(DurableSessionsTest, LeasesCountFromTheRestart) {
  const std::string id = BindAgp();
  server_->Advance(absl::Minutes(4));
  Restart();
  server_->Advance(absl::Minutes(4));
  EXPECT_TRUE(KeepAlive(stub(), id).ok());
  server_->Advance(absl::Minutes(6));
  EXPECT_EQ(KeepAlive(stub(), id).error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(DurableSessionsTest, TheReportOfAnEndedSessionIsThereAfterARestart) {
  const std::string closed = BindAgp();
  std::string bits;
  ASSERT_TRUE(Mask(closed, "a", &bits).ok());
  ASSERT_TRUE(CloseSession(stub(), closed).ok());
  const std::string expired = BindAgp();
  server_->Advance(absl::Minutes(6));
  ASSERT_EQ(KeepAlive(stub(), expired).error_code(), grpc::StatusCode::NOT_FOUND);
  Restart();
  EXPECT_EQ(KeepAlive(stub(), closed).error_code(), grpc::StatusCode::NOT_FOUND);
  const v1::Session report = Get(closed).session();
  EXPECT_EQ(report.state(), v1::SESSION_STATE_CLOSED);
  ASSERT_EQ(report.layers_size(), 2);
  EXPECT_FALSE(report.layers(0).stale());
  EXPECT_EQ(Get(expired).session().state(), v1::SESSION_STATE_EXPIRED);
  EXPECT_TRUE(CloseSession(stub(), closed).ok());
  server_->Advance(absl::Hours(1));
  v1::GetSessionResponse gone;
  EXPECT_TRUE(Eventually([&] {
    return GetSession(stub(), closed, &gone).error_code() == grpc::StatusCode::NOT_FOUND;
  }));
  Restart();
  EXPECT_EQ(GetSession(stub(), closed, &gone).error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(DurableSessionsTest, ASessionThatWasNotReadYetCanBeClosed) {
  const std::string id = BindAgp();
  Restart();
  ASSERT_TRUE(CloseSession(stub(), id).ok());
  EXPECT_EQ(Get(id).session().layers_size(), 2);
  server_->Advance(absl::Hours(1));  // nor is the report kept any more
  EXPECT_TRUE(server_->MemoryReturnsTo(0));
}

TEST_F(DurableSessionsTest, OnAFullDiskTheStateIsThatBeforeTheCall) {
  const std::string id = BindAgp();
  v1::UpdateEpochResponse epoch;
  ASSERT_TRUE(UpdateEpoch(stub(), id, 3, &epoch).ok());
  storage_->full = true;
  std::string bits;
  const grpc::Status full = Mask(id, "a", &bits, -200);
  EXPECT_EQ(full.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(full.error_message(), AllOf(HasSubstr("storage"), Not(HasSubstr("/data"))));
  EXPECT_EQ(bits, "");
  EXPECT_EQ(UpdateEpoch(stub(), id, 4, &epoch).error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(CloseSession(stub(), id).error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  grpc::ClientContext context;
  v1::BindModelResponse bound;
  EXPECT_EQ(
      stub()
          .BindModel(&context, BindRequest("level", {{"sparsity", 0.5}}, {{"a", {8}}}), &bound)
          .error_code(),
      grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_TRUE(Eventually([&] { return server_->server().live_sessions() == 1; }));
  storage_->full = false;

  EXPECT_EQ(Get(id).session().epoch(), 3);
  std::string after;
  ASSERT_TRUE(Mask(id, "a", &after).ok());
  const std::string uninterrupted = BindAgp();
  std::string expected;
  ASSERT_TRUE(UpdateEpoch(stub(), uninterrupted, 3, &epoch).ok());
  ASSERT_TRUE(Mask(uninterrupted, "a", &expected).ok());
  EXPECT_EQ(after, expected) << "the weight whose call failed decided nothing";
}

TEST_F(DurableSessionsTest, ADamagedSessionCostsNoOther) {
  const std::string damaged = BindAgp();
  const std::string whole = BindAgp();
  Restart();
  storage_->damaged = true;
  std::string bits;
  const grpc::Status status = Mask(damaged, "a", &bits);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::DATA_LOSS);
  EXPECT_THAT(status.error_message(), HasSubstr("damaged"));
  EXPECT_THAT(status.error_message(), Not(HasSubstr("/data")));
  v1::UpdateEpochResponse epoch;
  EXPECT_EQ(UpdateEpoch(stub(), damaged, 1, &epoch).error_code(), grpc::StatusCode::DATA_LOSS);
  EXPECT_TRUE(CloseSession(stub(), damaged).ok());
  storage_->damaged = false;
  EXPECT_TRUE(Mask(whole, "a", &bits).ok());
}

TEST_F(DurableSessionsTest, ASessionWhoseRowIsDamagedSaysSoUntilItIsClosed) {
  storage_->damaged_row = BindAgp();
  const std::string whole = BindAgp();
  Restart();
  EXPECT_EQ(server_->server().live_sessions(), 2);
  std::string bits;
  EXPECT_EQ(Mask(storage_->damaged_row, "a", &bits).error_code(), grpc::StatusCode::DATA_LOSS);
  EXPECT_TRUE(Mask(whole, "a", &bits).ok());
  EXPECT_TRUE(CloseSession(stub(), storage_->damaged_row).ok());
  EXPECT_EQ(server_->server().live_sessions(), 1);
}

TEST_F(DurableSessionsTest, SessionsWhoseSequencesAreDamagedLive) {
  for (const uint64_t sequence : {uint64_t{7}, uint64_t{0}, ~uint64_t{0}}) {
    std::set<std::string> bound;
    for (int i = 0; i < 3; ++i) bound.insert(BindAgp());
    storage_->sequence = sequence;
    Restart();
    storage_->sequence.reset();
    bound.insert(BindAgp());
    std::set<std::string> listed;
    v1::ListSessionsRequest request;
    request.set_page_size(1);
    do {
      grpc::ClientContext context;
      v1::ListSessionsResponse page;
      ASSERT_TRUE(stub().ListSessions(&context, request, &page).ok());
      ASSERT_EQ(page.sessions_size(), 1);
      EXPECT_TRUE(listed.insert(page.sessions(0).id()).second) << "a page comes twice";
      request.set_page_token(page.next_page_token());
    } while (!request.page_token().empty());
    EXPECT_EQ(listed, bound);
    for (const std::string& id : bound) EXPECT_TRUE(KeepAlive(stub(), id).ok());
    server_->Advance(absl::Minutes(6));
    for (const std::string& id : bound) {
      EXPECT_EQ(KeepAlive(stub(), id).error_code(), grpc::StatusCode::NOT_FOUND);
    }
    EXPECT_EQ(server_->server().live_sessions(), 0);
  }
}

TEST_F(DurableSessionsTest, QuantizersKeepWhatTheyRemember) {
  const std::string id = Bind(stub(), BindRequest("naive", {}, {{"fc", {2}}}));
  const auto scale = [&](float largest) {
    QuantizeMessage message;
    message.Open(id).Tensor(Header(0, "fc", {2}), Bytes({1.0f, largest}));
    v1::QuantizeWeightResponse response;
    EXPECT_TRUE(RunCall<QuantizeStream>(stub(), message, &response).ok());
    return response.results(0).parameters().scale(0);
  };
  const float before = scale(254);
  Restart();
  EXPECT_EQ(scale(127), before) << "the scale only grows";
}

TEST_F(DurableSessionsTest, AnEmptyFirstMessageOfACallIsNothingSpecial) {
  const std::string id = BindAgp();
  Restart();
  MaskStream stream(stub());
  stream.Send(MaskMessage());
  MaskMessage message;
  message.Open(id).Tensor(Header(0, "a", {100}), Bytes(std::vector<float>(100, 1)));
  stream.Send(message);
  stream.HalfClose();
  const v1::CalcMaskResponse response = stream.ReadAll();
  const grpc::Status status = stream.Finish();
  EXPECT_TRUE(status.ok()) << status.error_message();
  ASSERT_EQ(response.results_size(), 1);
  EXPECT_FALSE(response.results(0).has_error()) << response.results(0).error().message();
}

}  // namespace
}  // namespace nni_compression::testing
