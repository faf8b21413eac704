#include "server/calls/export_handler.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compression/messages/names.h"
#include "server/convert/convert.h"
#include "server/convert/json.h"
#include "server/limits/parsed_size.h"

namespace nni_compression::server {

namespace v1 = ::nni::compression::v1;

using compression::Buffer;
using compression::DataType;
using compression::ExportFile;
using compression::Segment;

namespace {

constexpr int64_t kPieceBytes = wire::kChunkBytes;

// Memory of planning per layer and tensor, until the plan states what it needs.
constexpr int64_t kPlannedBytes = 1 << 10;

// The options, both parsed and as JSON.
constexpr int64_t kOptionsCopies = 2;

}  // namespace

absl::StatusOr<bool> ExportHandler::OnOpen(wire::MessageReader& reader) {
  v1::ExportRequest::Open open;
  const auto reserve = [&](absl::string_view bytes) -> absl::Status {
    absl::StatusOr<Reservation> memory = Reserve(kOptionsCopies * ParsedSize(open, bytes));
    if (!memory.ok()) return memory.status();
    options_memory_ = *std::move(memory);
    return absl::OkStatus();
  };
  if (absl::Status status = reader.Parse(&open, reserve); !status.ok()) return status;
  const absl::StatusOr<bool> loaded = session_.Join(open.session_id());
  if (!loaded.ok()) return loaded;
  const auto exporter = compression::FindExporter(open.format());
  if (!exporter.ok()) return exporter.status();
  exporter_ = *exporter;
  absl::StatusOr<nlohmann::json> options = ToJson(open.options(), "open.options");
  if (!options.ok()) return options.status();
  options_ = *std::move(options);
  strand_ = Strand::Create(components_->executor_of(session_.record().algorithm()));
  return loaded;
}

absl::Status ExportHandler::OnReady() { return session_.CheckKind(std::nullopt); }

absl::StatusOr<TensorSink::Admission> ExportHandler::OnHeader(const v1::TensorHeader& header,
                                                              Reservation& bookkeeping) {
  if (planned_) {
    return absl::InvalidArgumentError(absl::StrCat(
        "headers: tensor ", header.index(), " came after a payload; all headers come first"));
  }
  if (absl::Status status = CheckTensorHeader(header); !status.ok()) return status;
  session_.AnswerDigest(header, /*have=*/false, bookkeeping);
  order_.push_back(header.index());
  announced_.push_back({header.layer(),
                        static_cast<DataType>(header.dtype()),
                        {header.shape().begin(), header.shape().end()},
                        static_cast<int64_t>(header.byte_length())});
  // A quantized weight is a second buffer next to the one received.
  const SessionRecord& record = session_.record();
  const bool quantized = record.kind() == compression::AlgorithmKind::kQuantizer &&
                         record.FindLayer(header.layer()).has_value();
  return Admission{true, quantized ? announced_.back().byte_length : 0};
}

absl::Status ExportHandler::CheckTensorHeader(const v1::TensorHeader& header) {
  const std::string path = absl::StrCat("headers: layer of tensor ", header.index());
  if (absl::Status status =
          compression::CheckName(header.layer(), compression::kMaxLayerNameBytes, path);
      !status.ok()) {
    return status;
  }
  if (!names_.insert(header.layer()).second) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, " is '", header.layer(), "', which an earlier header has, too; it must be unique"));
  }
  if (header.role() != v1::TENSOR_ROLE_WEIGHT) {
    return absl::InvalidArgumentError(absl::StrCat("headers: role of tensor ", header.index(),
                                                   " is ", static_cast<int>(header.role()),
                                                   "; it must be TENSOR_ROLE_WEIGHT"));
  }
  if (const std::optional<int> layer = session_.record().FindLayer(header.layer())) {
    const compression::Layer& bound = session_.record().layer(*layer);
    return CheckTensor(header, bound.dtype, bound.shape);
  }
  const auto dtype = ToDataType(header.dtype(), absl::StrCat("dtype of tensor ", header.index()));
  if (!dtype.ok()) return dtype.status();
  // Scalars of a model, such as counters, pass through, too.
  const auto scalar_bytes = static_cast<uint64_t>(compression::ByteLength(*dtype, 1));
  if (header.shape().empty() && header.byte_length() == scalar_bytes) return absl::OkStatus();
  return CheckTensor(
      header, *dtype,
      absl::MakeConstSpan(header.shape().data(), static_cast<size_t>(header.shape_size())));
}

absl::Status ExportHandler::OnTensor(ReceivedTensor tensor) {
  if (order_[received_] != tensor.header.index()) {
    return absl::InvalidArgumentError(absl::StrCat("commits: tensor ", tensor.header.index(),
                                                   " came before tensor ", order_[received_],
                                                   "; payloads come in the order of the headers"));
  }
  ++received_;
  session_.CountReceived(tensor.bytes.size());
  Plan();
  call_->Run(*strand_,
             [this, tensor = std::make_shared<ReceivedTensor>(
                        std::move(tensor))]() -> absl::StatusOr<Reply> {
               if (absl::Status status = VerifyChecksum(*tensor); !status.ok()) return status;
               tensors_.push_back(std::move(*tensor));
               return Pump();
             });
  return absl::OkStatus();
}

absl::Status ExportHandler::OnHalfClose() {
  Plan();
  call_->Run(*strand_, [this] {
    half_closed_ = true;
    return Pump();
  });
  return absl::OkStatus();
}

void ExportHandler::Plan() {
  if (std::exchange(planned_, true)) return;
  session_.Run([this](compression::Session& session) -> absl::StatusOr<Reply> {
    const int64_t planned_for =
        session_.record().layer_count() + static_cast<int64_t>(announced_.size());
    absl::StatusOr<Reservation> memory = Reserve(kPlannedBytes * planned_for);
    if (!memory.ok()) return memory.status();
    auto plan = exporter_->Plan(session, announced_, options_, [this] { return call_->failed(); });
    if (!plan.ok()) return plan.status();
    absl::StatusOr<Reservation> more = Reserve(plan->memory_needed() - memory->bytes());
    if (!more.ok()) return more.status();
    memory->ShrinkTo(plan->memory_needed());
    memory->Merge(*std::move(more));
    options_ = {};
    options_memory_ = {};
    struct Planned {
      compression::ExportPlan plan;
      Reservation memory;
    };
    auto planned = std::make_shared<Planned>(Planned{*std::move(plan), *std::move(memory)});
    call_->Run(*strand_, [this, planned] {
      memory_ = std::move(planned->memory);
      plan_ = std::move(planned->plan);
      ready_ = true;
      return Pump();
    });
    return Reply();
  });
}

absl::Status ExportHandler::OnAbandoned(const v1::TensorHeader& header) {
  return absl::InvalidArgumentError(absl::StrCat("commits: tensor ", header.index(),
                                                 " was committed without its bytes, which ",
                                                 "Export always needs, whatever their digest"));
}

absl::StatusOr<Reservation> ExportHandler::Reserve(int64_t bytes) {
  if (bytes <= 0) return Reservation();
  return components_->budget->ReserveNow(bytes, quota_, MemoryUse::kBookkeeping,
                                         "the bookkeeping of the export");
}

void ExportHandler::OnEnd() {
  if (strand_ == nullptr) return session_.End();
  strand_->Post([this, call = call_->shared_from_this()] {
    plan_ = {};
    memory_ = {};
    options_ = {};
    options_memory_ = {};
    tensors_.clear();
    session_.End();
  });
}

absl::StatusOr<Reply> ExportHandler::Pump() {
  Reply reply;
  if (!ready_ || awaiting_drain_) return reply;
  if (const auto there = Observe(); !there.ok()) {
    return there.status();
  } else if (!*there) {
    return reply;
  }
  int64_t produced = 0;
  while (file_ < plan_.files.size() && produced < kPieceBytes) {
    const ExportFile& file = plan_.files[file_];
    if (file_offset_ < 0) BeginFile(file, &reply);
    if (segment_ == file.segments().size()) {
      ++file_;
      segment_ = 0;
      file_offset_ = -1;
      continue;
    }
    const Segment& segment = file.segments()[segment_];
    if (segment.tensor && tensors_.empty()) break;
    const size_t payloads = reply.payloads.size();
    if (absl::Status status = ProduceSegment(segment, &reply); !status.ok()) return status;
    for (size_t i = payloads; i < reply.payloads.size(); ++i) {
      produced += reply.payloads[i].bytes.size();
    }
    // A tensor's reservation is released with its last byte, or at once if none are left.
    if (reply.payloads.size() == payloads) reply.memory.reset();
    if (reply.memory != nullptr) break;
  }
  if (reply.empty()) {
    reply.last = file_ == plan_.files.size() && half_closed_;
    return reply;
  }
  session_.CountSent(produced);
  awaiting_drain_ = true;
  call_->RunWhenDrained(*strand_, [this] {
    awaiting_drain_ = false;
    return Pump();
  });
  return reply;
}

absl::StatusOr<bool> ExportHandler::Observe() {
  if (!plan_.observe) return true;
  for (; !tensors_.empty(); tensors_.pop_front()) {
    if (call_->failed()) return absl::CancelledError("cancelled");
    absl::Status status = plan_.observe(observed_++, tensors_.front().bytes);
    if (!status.ok()) return status;
  }
  if (!half_closed_) return false;
  auto files = plan_.conclude();
  if (!files.ok()) return files.status();
  plan_ = {};
  plan_.files = *std::move(files);
  return true;
}

void ExportHandler::BeginFile(const ExportFile& file, Reply* reply) {
  if (reply->fields == nullptr) reply->fields = std::make_unique<v1::ExportResponse>();
  auto& fields = static_cast<v1::ExportResponse&>(*reply->fields);
  v1::FileHeader* header = fields.add_files();
  header->set_index(static_cast<uint32_t>(file_));
  header->set_name(file.name());
  header->set_media_type(file.media_type());
  header->set_byte_length(static_cast<uint64_t>(file.byte_length()));
  for (const std::string& warning : file.warnings()) header->add_warnings(warning);
  if (file.byte_length() == 0) {
    v1::Commit* commit = fields.add_commits();
    commit->set_index(header->index());
  }
  file_offset_ = 0;
}

absl::Status ExportHandler::ProduceSegment(const Segment& segment, Reply* reply) {
  Payload payload;
  payload.index = static_cast<uint32_t>(file_);
  payload.offset = static_cast<uint64_t>(file_offset_);
  payload.total = static_cast<uint64_t>(plan_.files[file_].byte_length());
  if (segment.tensor) {
    ReceivedTensor tensor = std::move(tensors_.front());
    tensors_.pop_front();
    if (absl::Status status = segment.Apply(tensor.bytes); !status.ok()) return status;
    payload.bytes = std::move(tensor.bytes);
    reply->memory = std::make_shared<Reservation>(std::move(tensor.memory));
    reply->bookkeeping = std::move(tensor.bookkeeping);
  } else {
    const int64_t size = std::min(segment.byte_length - segment_offset_, kPieceBytes);
    payload.bytes = Buffer::Allocate(size);
    segment.fill(segment_offset_, absl::MakeSpan(payload.bytes.data(), static_cast<size_t>(size)));
  }
  file_offset_ += payload.bytes.size();
  segment_offset_ += payload.bytes.size();
  if (segment_offset_ >= segment.byte_length) {
    ++segment_;
    segment_offset_ = 0;
  }
  if (payload.bytes.size() > 0) reply->payloads.push_back(std::move(payload));
  return absl::OkStatus();
}

}  // namespace nni_compression::server
