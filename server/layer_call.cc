#include "server/layer_call.h"

#include <cstring>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/log.h"

namespace nni_compression::server {

namespace v1 = ::nni::compression::v1;

namespace {

absl::Status Prefixed(absl::string_view field, const v1::TensorHeader& header,
                      const absl::Status& status) {
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat(field, " of '", Printable(header.layer(), 128),
                                                  "': ", status.message()));
}

// Computing on fewer bytes takes no longer than the small calls that would wait for it.
constexpr int64_t kLongWorkBytes = 4 << 20;

}  // namespace

absl::Status LayerCall::OnTensor(ReceivedTensor tensor) {
  CountReceived(tensor.bytes.size());
  const Work work = tensor.bytes.size() < kLongWorkBytes ? Work::kShort : Work::kLong;
  const auto shared = std::make_shared<ReceivedTensor>(std::move(tensor));
  RunInSession(
      [this, shared](compression::Session& session) { return ApplyChecked(session, *shared); },
      work);
  return absl::OkStatus();
}

absl::Status LayerCall::OnHalfClose() {
  RunInSession([this](compression::Session& session) {
    if (absl::Status status = CheckClock(session); !status.ok()) return status;
    UpdateSummary(session);
    WhenStored([this] { Complete(); });
    return absl::OkStatus();
  });
  return absl::OkStatus();
}

void LayerCall::AdmitPresent(const v1::TensorHeader& header, Admission* admission) {
  if (!admission->accepted) return;
  AdmitKnown(header, admission);
  AdmitShared(header, admission);
}

void LayerCall::AdmitKnown(const v1::TensorHeader& header, Admission* admission) {
  if (header.digest().empty()) return;
  std::shared_ptr<CachedWeight> known;
  if (header.role() == v1::TENSOR_ROLE_WEIGHT) {
    known = core()->weights->Find(tenant(), header);
  }
  AnswerDigest(header, known != nullptr);
  if (known == nullptr) return;
  // The cached weight, with its share of the budget, lives as long as the buffer does.
  admission->present = compression::Buffer::Alias(known->bytes.data(), known->bytes.size(), known);
  admission->statistics = {known, &known->statistics};
}

void LayerCall::AdmitShared(const v1::TensorHeader& header, Admission* admission) {
  absl::Status status;
  if (header.has_shared_memory()) {
    if (header.role() != v1::TENSOR_ROLE_WEIGHT || !header.digest().empty()) {
      status = absl::InvalidArgumentError("only a weight without digest");
    } else {
      auto bytes = core()->regions->Find(tenant(), header.shared_memory(), header.byte_length(),
                                         /*writable=*/false);
      status = bytes.status();
      if (bytes.ok()) admission->present = *std::move(bytes);
    }
    status = Prefixed("shared_memory", header, status);
  }
  if (status.ok() && header.has_result_place()) {
    const v1::SharedPlace& place = header.result_place();
    status = Prefixed(
        "result_place", header,
        core()->regions->Find(tenant(), place, place.capacity(), /*writable=*/true).status());
  }
  if (status.ok()) return;
  AnswerError(header, status);
  *admission = {};
}

void LayerCall::Answered(Reply reply) {
  WhenStored(
      [this, shared = std::make_shared<Reply>(std::move(reply))] { Push(std::move(*shared)); });
}

void LayerCall::AddResult(const ReceivedTensor& request, compression::Buffer bytes,
                          v1::TensorHeader* header, Reply* reply) {
  Payload payload;
  payload.index = header->index();
  payload.total = header->byte_length();
  if (request.crc32) payload.crc32 = Crc32(bytes);  // who checks one way checks both
  const v1::SharedPlace& place = request.header.result_place();
  const bool main = header->role() != v1::TENSOR_ROLE_SCALE &&
                    header->role() != v1::TENSOR_ROLE_ZERO_POINT;  // these are small
  if (main && request.header.has_result_place() && header->byte_length() <= place.capacity()) {
    const auto to =
        core()->regions->Find(tenant(), place, header->byte_length(), /*writable=*/true);
    if (to.ok()) {
      std::memcpy(to->data(), bytes.data(), static_cast<size_t>(bytes.size()));
      header->mutable_shared_memory()->set_region(place.region());
      header->mutable_shared_memory()->set_offset(place.offset());
      payload.offset = payload.total;  // only the commit is left
      bytes = {};
    }
  }
  payload.bytes = std::move(bytes);
  reply->payloads.push_back(std::move(payload));
}

absl::Status LayerCall::ApplyChecked(compression::Session& session, ReceivedTensor& tensor) {
  if (absl::Status status = CheckClock(session); !status.ok()) return status;
  if (absl::Status status = VerifyChecksum(tensor); !status.ok()) return status;
  const absl::StatusOr<int> layer = session.FindLayer(tensor.header.layer());
  if (!layer.ok()) return layer.status();
  const bool keep = tensor.came && tensor.header.role() == v1::TENSOR_ROLE_WEIGHT &&
                    (!tensor.header.fingerprint().empty() || !tensor.header.digest().empty());
  if (!keep) return Apply(session, *layer, tensor);

  const compression::Buffer bytes = tensor.bytes;
  Reservation memory = tensor.memory.Split(bytes.size());
  const v1::TensorHeader header = tensor.header;
  if (absl::Status status = Apply(session, *layer, tensor); !status.ok()) return status;
  if (!header.digest().empty() && TensorDigest::Of(header, bytes) != header.digest()) {
    return absl::DataLossError(absl::StrCat("digest of tensor ", header.index(), " ('",
                                            Printable(header.layer(), 128),
                                            "') is not that of the bytes that came"));
  }
  memory.Uncharge();  // it goes when others need it
  core()->weights->Keep(tenant(), header, bytes, std::move(memory));
  return absl::OkStatus();
}

}  // namespace nni_compression::server
