#include "server/calls/bind_model.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>

#include <cstring>
#include <map>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compression/messages/names.h"
#include "server/base/errors.h"
#include "server/base/log.h"
#include "server/convert/convert.h"
#include "server/platform/sha256.h"
#include "server/sessions/session_memory.h"
#include "server/sessions/session_report.h"

namespace nni_compression::server {

namespace v1 = ::nni::compression::v1;

using compression::Buffer;
using compression::Mask;
using compression::Session;

namespace {

constexpr size_t kMaxRequestIdBytes = 128;
constexpr int kMaxLabels = 32;
constexpr size_t kMaxLabelKeyBytes = 64;
constexpr size_t kMaxLabelValueBytes = 256;

absl::Status CheckRequest(const v1::BindModelRequest& request) {
  if (request.request_id().size() > kMaxRequestIdBytes) {
    return absl::InvalidArgumentError(absl::StrCat("request_id has ", request.request_id().size(),
                                                   " bytes; it may have at most ",
                                                   kMaxRequestIdBytes));
  }
  if (request.labels_size() > kMaxLabels) {
    return absl::InvalidArgumentError(absl::StrCat("labels has ", request.labels_size(),
                                                   " entries; it may have at most ", kMaxLabels));
  }
  for (const auto& [key, value] : request.labels()) {
    const std::string path = absl::StrCat("labels['", Printable(key, kMaxLabelKeyBytes), "']");
    if (absl::Status s = compression::CheckName(key, kMaxLabelKeyBytes, path + ": the key");
        !s.ok()) {
      return s;
    }
    if (value.size() > kMaxLabelValueBytes) {
      return absl::InvalidArgumentError(absl::StrCat(
          path, " has ", value.size(), " bytes; it may have at most ", kMaxLabelValueBytes));
    }
  }
  for (const auto& [name, value] :
       {std::pair("epoch", request.epoch()), std::pair("step", request.step())}) {
    if (auto status = compression::CheckCounter(name, value); !status.ok()) return status;
  }
  const auto& lease = request.lease();
  if (request.has_lease() &&
      (lease.seconds() < 0 || lease.nanos() < 0 || lease.nanos() > 999999999 ||
       (lease.seconds() == 0 && lease.nanos() == 0))) {
    return absl::InvalidArgumentError(absl::StrCat("lease is ", lease.seconds(), " s and ",
                                                   lease.nanos(), " ns; it must be above 0"));
  }
  return absl::OkStatus();
}

// Requests with equal content have equal fingerprints. A digest, since it is stored and outlives
// the process.
std::string Fingerprint(const v1::BindModelRequest& request) {
  std::string bytes;
  {
    google::protobuf::io::StringOutputStream stream(&bytes);
    google::protobuf::io::CodedOutputStream coded(&stream);
    coded.SetSerializationDeterministic(true);
    request.SerializeToCodedStream(&coded);
  }
  return Sha256(bytes);
}

absl::Status SetMasks(const v1::BindModelRequest& request, Session& session) {
  for (int i = 0; i < request.masks_size(); ++i) {
    const v1::LayerMask& given = request.masks(i);
    const absl::Status status = [&]() -> absl::Status {
      const absl::StatusOr<int> layer = session.FindLayer(given.layer());
      if (!layer.ok()) return layer.status();
      Buffer bits = Buffer::Allocate(static_cast<int64_t>(given.bits().size()));
      std::memcpy(bits.data(), given.bits().data(), given.bits().size());
      absl::StatusOr<Mask> mask = Mask::FromBits(std::move(bits), session.layer(*layer).elements);
      if (!mask.ok()) return mask.status();
      return session.SetMask(*layer, *std::move(mask)).status();
    }();
    if (!status.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("masks[", i, "]: ", status.message()));
    }
  }
  return absl::OkStatus();
}

absl::Status SetMemory(const v1::BindModelRequest& request, Session& session) {
  for (int i = 0; i < request.memory_size(); ++i) {
    const v1::LayerMemory& given = request.memory(i);
    const absl::StatusOr<int> layer = session.FindLayer(given.layer());
    const absl::Status status =
        layer.ok() ? session.Remember(*layer, ToMemory(given.memory())) : layer.status();
    if (!status.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("memory[", i, "]: ", status.message()));
    }
  }
  return absl::OkStatus();
}

void FillResponse(const SessionRecord& record, const Session& session, absl::Duration lease,
                  v1::BindModelResponse* response) {
  response->set_session_id(record.id());
  ToProto(session.plan(), session.binding().layers, response->mutable_plan());
  ToProto(lease, response->mutable_lease());
  StaleLayers(session, response->mutable_stale_layers());
}

std::optional<absl::Duration> Lease(const v1::BindModelRequest& request) {
  if (!request.has_lease()) return std::nullopt;
  return absl::Seconds(request.lease().seconds()) + absl::Nanoseconds(request.lease().nanos());
}

absl::StatusOr<SessionUse> Bind(UnaryCall& call, const v1::BindModelRequest& request,
                                const std::string& fingerprint, std::shared_ptr<Strand> strand) {
  if (absl::Status status = CheckRequest(request); !status.ok()) return status;
  // A retry needs no memory of its own: it must succeed on a full server.
  absl::StatusOr<SessionUse> earlier =
      call.components()->sessions->FindRequest(call.tenant(), request.request_id(), fingerprint);
  if (!earlier.ok() || *earlier) return earlier;
  SessionMemory memory(call.components()->budget.get(), call.memory_quota());
  const int64_t binding_bytes = BindingBytes(request);
  if (absl::Status s = memory.Reserve(binding_bytes, "the session's layers"); !s.ok()) return s;
  absl::StatusOr<compression::Binding> binding = ToBinding(request);
  if (!binding.ok()) return binding.status();
  if (call.cancelled()) return absl::CancelledError("cancelled");
  SessionMemory patterns(call.components()->budget.get(), call.memory_quota());
  if (absl::Status s = patterns.Reserve(PatternBytes(request), "the patterns of config_list");
      !s.ok()) {
    return s;
  }
  auto session = Session::Bind(*call.components()->registry, *std::move(binding),
                               [&call] { return call.cancelled(); });
  if (!session.ok()) return session.status();
  if (absl::Status s = memory.Reserve(AnswerBytes(**session), "the session's masks and scales");
      !s.ok()) {
    return s;
  }
  if (absl::Status status = SetMasks(request, **session); !status.ok()) return status;
  if (absl::Status status = SetMemory(request, **session); !status.ok()) return status;
  const SessionRecord::Summary summary = Summarize(**session);
  const int64_t disk_bytes =
      call.components()->durable == nullptr ? 0 : DiskBytes(**session, request);
  auto record = std::make_shared<SessionRecord>(
      call.tenant(),
      std::map<std::string, std::string>(request.labels().begin(), request.labels().end()),
      std::move(strand), *std::move(session), std::move(memory), binding_bytes, disk_bytes);
  if (absl::Status s = record->CountGrowth(); !s.ok()) return s;
  record->SetSummary(summary);
  return call.components()->sessions->Insert(record, request.request_id(), fingerprint,
                                             Lease(request), call.caller().quota);
}

// On the new session's strand. The reply is sent once the session is stored; if storing fails, the
// session does not exist.
void FinishNew(const std::shared_ptr<UnaryCall>& call, SessionUse use,
               const v1::BindModelRequest& request, const std::string& fingerprint,
               v1::BindModelResponse* response) {
  const Components& components = *call->components();
  const auto held = std::make_shared<SessionUse>(std::move(use));
  const auto finish = [call, held](const absl::Status& status) {
    if (!status.ok()) call->components()->sessions->Discard(held->record());
    call->FinishInSession(*held, status);
  };
  const absl::Status status = CatchExceptions([&] {
    FillResponse(**held, *(*held)->session(), components.sessions->Times(**held).lease, response);
    if (absl::Status reply = call->ReserveReply(); !reply.ok()) return reply;
    if (components.durable != nullptr) {
      components.durable->Create(held->record(), request, fingerprint, finish);
    }
    return absl::OkStatus();
  });
  if (!status.ok() || components.durable == nullptr) finish(status);
}

}  // namespace

void BindModel(const std::shared_ptr<UnaryCall>& call, const v1::BindModelRequest& request,
               v1::BindModelResponse* response) {
  const std::shared_ptr<Strand> strand =
      Strand::Create(call->components()->executor_of(request.algorithm()));
  strand->Post(
      [call, strand, &request, response] {
        std::string fingerprint;
        absl::StatusOr<SessionUse> use = CatchExceptions([&]() -> absl::StatusOr<SessionUse> {
          if (call->cancelled()) return absl::CancelledError("cancelled");
          fingerprint = Fingerprint(request);
          return Bind(*call, request, fingerprint, strand);
        });
        if (!use.ok()) return call->Finish(use.status());
        if (&(*use)->strand() != strand.get()) {  // a retry gets the session of the first call
          const absl::Duration lease = call->components()->sessions->Times(**use).lease;
          return call->RunInSession(
              *std::move(use),
              [lease, response](SessionUse& first, Session& session) -> absl::Status {
                if (first->state() != SessionState::kActive) {
                  return absl::UnavailableError(
                      "the session that an earlier call with this request_id bound no longer "
                      "exists; retry");
                }
                FillResponse(*first, session, lease, response);
                return absl::OkStatus();
              });
        }
        LogLimited(LogLevel::kInfo, "session_bound", call->tenant(),
                   {{"session", (*use)->id()},
                    {"tenant", call->tenant()},
                    {"algorithm", request.algorithm()},
                    {"layers", request.layers_size()},
                    {"compressed", (*use)->compressed_layers()}});
        FinishNew(call, *std::move(use), request, fingerprint, response);
      },
      call->work());
}

}  // namespace nni_compression::server
