#include "server/calls/session_rpcs.h"

#include <cmath>
#include <map>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compression/messages/names.h"
#include "proto/wire/frames.h"
#include "server/base/errors.h"
#include "server/base/log.h"
#include "server/convert/convert.h"
#include "server/sessions/session_report.h"

namespace nni_compression::server {

namespace v1 = ::nni::compression::v1;

using compression::Session;

namespace {

constexpr int kMaxFingerprints = 65536;
constexpr size_t kMaxResultNameBytes = 64;
constexpr int kDefaultPage = 100;
constexpr int kMaxPage = 1000;

// A page ends early if it would not fit into a message.
constexpr size_t kMaxPageBytes = 3 << 20;

void FillLive(Components* components, const SessionRecord& record, const Session& session,
              v1::GetSessionResponse* response) {
  DescribeSession(record, components->sessions->Times(record), response->mutable_session());
  DescribeLayers(session, response->mutable_session());
  DescribeConfigList(session, response->mutable_session());
  ToProto(session.plan(), session.binding().layers, response->mutable_plan());
}

// Calls of an operator find the sessions of all tenants.
std::string TenantOf(const UnaryCall& call, const std::string& id) {
  if (!call.caller().admin) return call.tenant();
  return call.components()->sessions->TenantOf(id).value_or(call.tenant());
}

v1::Session LastReport(SessionStore* sessions, SessionRecord& record, SessionState state) {
  v1::Session report;
  if (record.session() != nullptr) record.SetSummary(Summarize(*record.session()));
  DescribeSession(record, sessions->Times(record), &report);
  report.set_state(static_cast<v1::SessionState>(state));
  report.clear_lease();
  report.clear_disk_bytes();
  if (record.session() == nullptr) return report;
  DescribeLayers(*record.session(), &report);
  DescribeConfigList(*record.session(), &report);
  return report;
}

// Without its layers if there is no memory for them.
v1::Session LastReportOrLess(SessionStore* sessions, SessionRecord& record, SessionState state) {
  absl::StatusOr<v1::Session> report = CatchExceptions(
      [&]() -> absl::StatusOr<v1::Session> { return LastReport(sessions, record, state); });
  if (report.ok()) return *std::move(report);
  record.Retire();  // frees its memory, which may be what is missing
  return LastReport(sessions, record, state);
}

// A session that cannot be loaded ends with the report in its catalogue entry.
void StoreEnd(const Components& components, const std::shared_ptr<SessionRecord>& record,
              SessionState state, DurableSessions::Done done) {
  record->strand().Post([durable = components.durable, sessions = components.sessions, record,
                         state, done = std::move(done)] {
    durable->End(record, LastReportOrLess(sessions, *record, state), done);
  });
}

}  // namespace

void FindWeights(const std::shared_ptr<UnaryCall>& call, const v1::FindWeightsRequest& request,
                 v1::FindWeightsResponse* response) {
  if (request.fingerprints_size() > kMaxFingerprints) {
    return call->Finish(absl::InvalidArgumentError(
        absl::StrCat("there are ", request.fingerprints_size(), " fingerprints; at most ",
                     kMaxFingerprints, " are allowed")));
  }
  absl::StatusOr<SessionUse> use =
      call->components()->sessions->Use(call->tenant(), request.session_id());
  if (!use.ok()) return call->Finish(use.status());
  call->components()->weights->Ask(
      call->tenant(), {request.fingerprints().begin(), request.fingerprints().end()},
      // In use until the digests are computed, so that the session does not expire.
      [call, response,
       use = std::make_shared<SessionUse>(*std::move(use))](const std::vector<bool>& kept) {
        for (const bool one : kept) response->add_may_have(one);
        use->Drop();
        call->Finish(absl::OkStatus());
      });
}

void UpdateEpoch(const std::shared_ptr<UnaryCall>& call, const v1::UpdateEpochRequest& request,
                 v1::UpdateEpochResponse* response) {
  call->RunInSession(request.session_id(),
                     [epoch = request.epoch(), response](SessionUse& use, Session& session) {
                       if (absl::Status status = session.UpdateEpoch(epoch); !status.ok())
                         return status;
                       use->SetSummary(Summarize(session));
                       response->set_epoch(session.clock().epoch);
                       StaleLayers(session, response->mutable_stale_layers());
                       MaskChecksums(session, response->mutable_masks());
                       return absl::OkStatus();
                     });
}

void ReportResults(const std::shared_ptr<UnaryCall>& call, const v1::ReportResultsRequest& request,
                   v1::ReportResultsResponse*) {
  for (const auto& [name, value] : request.results()) {
    const std::string path = absl::StrCat("results['", Printable(name, kMaxResultNameBytes), "']");
    absl::Status status =
        compression::CheckName(name, kMaxResultNameBytes, absl::StrCat(path, ": the name"));
    if (status.ok() && !std::isfinite(value)) {
      status = absl::InvalidArgumentError(absl::StrCat(path, " is ", value, "; it must be finite"));
    }
    if (!status.ok()) return call->Finish(status);
  }
  call->RunInSession(request.session_id(),
                     [results = Results(request.results().begin(), request.results().end())](
                         SessionUse& use, Session&) { return use->AddResults(results); });
}

void KeepAlive(const std::shared_ptr<UnaryCall>& call, const v1::KeepAliveRequest& request,
               v1::KeepAliveResponse* response) {
  // Not on the strand: a session that computes is alive, and the trainer should get its answer now.
  const absl::StatusOr<SessionUse> use =
      call->components()->sessions->Use(call->tenant(), request.session_id());
  if (use.ok())
    ToProto(call->components()->sessions->Times(**use).lease, response->mutable_lease());
  call->Finish(use.status());
}

void GetSession(const std::shared_ptr<UnaryCall>& call, const v1::GetSessionRequest& request,
                v1::GetSessionResponse* response) {
  const std::string tenant = TenantOf(*call, request.session_id());
  absl::StatusOr<SessionUse> use = call->components()->sessions->Use(tenant, request.session_id());
  std::shared_ptr<SessionRecord> record;
  if (use.ok()) {
    if (absl::Status status = call->CheckRevision(**use); !status.ok()) {
      return call->FinishInSession(*use, status);
    }
    record = use->record();
  } else {
    auto ended = call->components()->sessions->FindReport(tenant, request.session_id());
    if (!ended.ok()) return call->Finish(ended.status());
    record = *std::move(ended);
  }
  auto held = std::make_shared<SessionUse>();
  if (use.ok()) *held = *std::move(use);
  call->Load(record, [call, record, held, response](const absl::Status& loaded) {
    if (!loaded.ok()) {
      held->Drop();
      return call->Finish(loaded);
    }
    // Both are read on the strand, where the report was written.
    record->strand().Post([call, record, held, response] {
      const absl::Status status = CatchExceptions([&] {
        if (record->session() != nullptr) {
          record->SetSummary(Summarize(*record->session()));
          FillLive(call->components(), *record, *record->session(), response);
        } else if (record->report() != nullptr) {
          *response->mutable_session() = *record->report();
        }
        if (call->caller().admin) response->mutable_session()->set_tenant(record->tenant());
        // The rest of the reply fits by itself, or not.
        if (response->ByteSizeLong() > static_cast<size_t>(wire::kMaxMessageBytes)) {
          response->mutable_session()->clear_config_list();
          for (v1::LayerReport& layer : *response->mutable_session()->mutable_layers()) {
            layer.clear_statistics();
          }
        }
        return absl::OkStatus();
      });
      held->Drop();
      call->Finish(status);
    });
  });
}

void ListSessions(const std::shared_ptr<UnaryCall>& call, const v1::ListSessionsRequest& request,
                  v1::ListSessionsResponse* response) {
  if (request.page_size() < 0 || request.page_size() > kMaxPage) {
    return call->Finish(absl::InvalidArgumentError(
        absl::StrCat("page_size is ", request.page_size(), "; it must be in [0, ", kMaxPage, "]")));
  }
  SessionStore* const sessions = call->components()->sessions;
  const auto tenant =
      call->caller().admin ? std::nullopt : std::optional<absl::string_view>(call->tenant());
  const absl::StatusOr<SessionStore::Page> page = sessions->List(
      tenant, std::map<std::string, std::string>(request.labels().begin(), request.labels().end()),
      request.page_size() == 0 ? kDefaultPage : request.page_size(), request.page_token(),
      request.include_ended());
  if (!page.ok()) return call->Finish(page.status());
  response->set_next_page_token(page->next_token);
  size_t bytes = 0;
  for (const auto& record : page->sessions) {
    if (bytes > kMaxPageBytes) {
      response->set_next_page_token(sessions->Token(tenant, *record));
      break;
    }
    v1::Session* session = response->add_sessions();
    DescribeSession(*record, sessions->Times(*record), session);
    if (call->caller().admin) session->set_tenant(record->tenant());
    bytes += session->ByteSizeLong();
  }
  call->Finish(absl::OkStatus());
}

void CloseSession(const std::shared_ptr<UnaryCall>& call, const v1::CloseSessionRequest& request,
                  v1::CloseSessionResponse*) {
  Components* const components = call->components();
  const std::string tenant = TenantOf(*call, request.session_id());
  absl::StatusOr<SessionUse> use = components->sessions->Use(tenant, request.session_id());
  if (components->durable == nullptr || !use.ok()) {
    return call->Finish(components->sessions->Close(tenant, request.session_id()));
  }
  const auto held = std::make_shared<SessionUse>(*std::move(use));
  components->durable->Load(held->record(), [call, held](const absl::Status&) {
    StoreEnd(
        *call->components(), held->record(), SessionState::kClosed,
        [call, held](const absl::Status& status) {
          const std::shared_ptr<SessionRecord> record = held->record();
          held->Drop();
          // A session that has ended in the meantime counts as closed.
          const bool ended = status.ok() || absl::IsNotFound(status);
          call->Finish(ended ? call->components()->sessions->Close(record->tenant(), record->id())
                             : status);
        });
  });
}

void ListAlgorithms(const std::shared_ptr<UnaryCall>& call, const v1::ListAlgorithmsRequest&,
                    v1::ListAlgorithmsResponse* response) {
  for (const compression::AlgorithmInfo* algorithm : call->components()->registry->List()) {
    v1::Algorithm* entry = response->add_algorithms();
    ToProto(*algorithm, entry);
    entry->set_refusal(call->components()->external->Refusal(algorithm->name));
  }
  response->set_server_version(call->components()->version);
  call->Finish(absl::OkStatus());
}

void ListTenants(const std::shared_ptr<UnaryCall>& call, const v1::ListTenantsRequest&,
                 v1::ListTenantsResponse* response) {
  if (!call->caller().admin) {
    return call->Finish(
        absl::PermissionDeniedError("only operators may list the usage of tenants"));
  }
  std::map<std::string, v1::TenantUse> tenants;
  for (const auto& [name, use] : call->components()->gate->Uses()) {
    tenants[name].set_calls(static_cast<uint64_t>(use.calls));
    tenants[name].set_memory_bytes(static_cast<uint64_t>(use.memory));
    tenants[name].set_uploads(static_cast<uint64_t>(use.uploads));
  }
  for (const auto& [name, live] : call->components()->sessions->LiveByTenant()) {
    tenants[name].set_sessions(static_cast<uint64_t>(live.sessions));
    tenants[name].set_disk_bytes(static_cast<uint64_t>(live.disk_bytes));
  }
  for (auto& [name, use] : tenants) {
    use.set_tenant(name);
    *response->add_tenants() = std::move(use);
  }
  call->Finish(absl::OkStatus());
}

void RetireSession(const Components& components, const std::shared_ptr<SessionRecord>& record) {
  LogLimited(LogLevel::kInfo,
             record->state() == SessionState::kClosed ? "session_closed" : "session_expired",
             record->tenant(), {{"session", record->id()}, {"tenant", record->tenant()}});
  if (components.durable != nullptr && record->state() == SessionState::kExpired) {
    StoreEnd(components, record, SessionState::kExpired, [](const absl::Status&) {});
  }
  record->strand().Post([sessions = components.sessions, record] {
    v1::Session report = LastReportOrLess(sessions, *record, record->state());
    record->Retire();
    record->KeepReport(std::move(report));
  });
}

}  // namespace nni_compression::server
