#include "server/calls/layer_tensors.h"

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/base/log.h"

namespace nni_compression::server {

namespace v1 = ::nni::compression::v1;

namespace {

absl::Status Prefixed(absl::string_view field, const v1::TensorHeader& header,
                      const absl::Status& status) {
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat(field, " of '", Printable(header.layer(), 128),
                                                  "': ", status.message()));
}

// Other tensors are never sent twice.
bool MayBeKnown(v1::TensorRole role) {
  return role == v1::TENSOR_ROLE_WEIGHT || role == v1::TENSOR_ROLE_STATISTIC;
}

}  // namespace

bool LayerTensors::FindKnown(const v1::TensorHeader& header,
                             TensorSink::Admission* admission) const {
  if (header.digest().empty() || !MayBeKnown(header.role())) return false;
  const std::shared_ptr<CachedWeight> known = components_->weights->Find(tenant_, header);
  if (known == nullptr) return false;
  // The cached weight, with its share of the budget, lives as long as the buffer does.
  admission->present =
      compression::Buffer::Alias(known->bytes().data(), known->bytes().size(), known);
  admission->statistics = {known, &known->statistics()};
  return true;
}

absl::Status LayerTensors::FindShared(const v1::TensorHeader& header,
                                      TensorSink::Admission* admission) const {
  if (header.has_shared_memory()) {
    if (header.role() != v1::TENSOR_ROLE_WEIGHT || !header.digest().empty()) {
      return Prefixed("shared_memory", header,
                      absl::InvalidArgumentError("only a weight without digest"));
    }
    auto bytes = components_->regions->Find(tenant_, header.shared_memory(), header.byte_length(),
                                            /*writable=*/false);
    if (!bytes.ok()) return Prefixed("shared_memory", header, bytes.status());
    admission->present = *std::move(bytes);
  }
  if (!header.has_result_place()) return absl::OkStatus();
  const v1::SharedPlace& place = header.result_place();
  return Prefixed(
      "result_place", header,
      components_->regions->Find(tenant_, place, place.capacity(), /*writable=*/true).status());
}

void LayerTensors::AddResult(const ReceivedTensor& request, compression::Buffer bytes,
                             v1::TensorHeader* header, Reply* reply) const {
  Payload payload;
  payload.index = header->index();
  payload.total = header->byte_length();
  if (request.crc32) payload.crc32 = Crc32(bytes);  // a client that sends checksums gets them, too
  const v1::SharedPlace& place = request.header.result_place();
  const bool main = header->role() != v1::TENSOR_ROLE_SCALE &&
                    header->role() != v1::TENSOR_ROLE_ZERO_POINT;  // zero points are small
  if (main && request.header.has_result_place() && header->byte_length() <= place.capacity()) {
    const auto to =
        components_->regions->Find(tenant_, place, header->byte_length(), /*writable=*/true);
    if (to.ok()) {
      std::memcpy(to->data(), bytes.data(), static_cast<size_t>(bytes.size()));
      header->mutable_shared_memory()->set_region(place.region());
      header->mutable_shared_memory()->set_offset(place.offset());
      payload.offset = payload.total;  // only the commit remains
      bytes = {};
    }
  }
  payload.bytes = std::move(bytes);
  reply->payloads.push_back(std::move(payload));
}

bool LayerTensors::IsWorthKeeping(const ReceivedTensor& tensor) {
  return tensor.uploaded && MayBeKnown(tensor.header.role()) &&
         (!tensor.header.fingerprint().empty() || !tensor.header.digest().empty());
}

absl::Status LayerTensors::Keep(const v1::TensorHeader& header, const compression::Buffer& bytes,
                                Reservation memory) const {
  if (!header.digest().empty() && TensorDigest::Of(header, bytes) != header.digest()) {
    return absl::DataLossError(absl::StrCat("digest of tensor ", header.index(), " ('",
                                            Printable(header.layer(), 128),
                                            "') does not match the bytes received"));
  }
  memory.Uncharge();  // it is evicted when others need the memory
  components_->weights->Keep(tenant_, header, bytes, std::move(memory));
  // Requests that wait for memory have reclaimed before this weight was cached, so reclaim again.
  if (components_->budget->waiting() > 0) components_->weights->Reclaim(bytes.size());
  return absl::OkStatus();
}

}  // namespace nni_compression::server
